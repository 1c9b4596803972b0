"""CLIP's text encoder, as transformers' `CLIPTextModel` and `CLIPTextModelWithProjection` compute it."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.models.clip_layers import CLIP_FIELDS, CLIPEncoder, read_clip_config
from utilgen_jax.models.json_fields import Kind, only, whole
from utilgen_jax.models.layers import Dense

# The wrong end-of-text id of configs before transformers #24773 (OpenAI's, Stable Diffusion 1.x and 2.x).
LEGACY_EOS_TOKEN_ID = 2

# The fields of `text_encoder/config.json`, see `json_fields`.
TEXT_FIELDS: dict[str, Kind] = CLIP_FIELDS | {
    "model_type": only("clip_text_model"),
    "vocab_size": whole(1),
    "max_position_embeddings": whole(1),
    "eos_token_id": whole(0),
}


@struct.dataclass
class CLIPTextOutput:
    """Output of the text encoder; D is hidden_size, P projection_dim.

    Attributes:
        last_hidden_state: [B, T, D], after the final layer norm.
        hidden_states: num_hidden_layers + 1 arrays [B, T, D]: the embeddings, then each layer's output without the
            final layer norm.
        pooled: last_hidden_state at the end-of-text token, [B, D].
        text_embeds: projection of `pooled`, [B, P]; None for a model without projection.
    """

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...]
    pooled: jax.Array
    text_embeds: jax.Array | None = None


def end_of_text_position(input_ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Returns the position of the end-of-text token, int32 [B], in token ids int [B, T].

    It is the position of the first `eos_token_id`, or 0 without any. With the legacy id 2 it is that of the first
    largest id, which is CLIP's end-of-text token.
    """
    if eos_token_id == LEGACY_EOS_TOKEN_ID:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eos_token_id, axis=-1)


class CLIPTextEmbeddings(nn.Module):
    """Token plus position embeddings."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Creates the embedding tables."""
        self.token_embedding = nn.Embed(self.vocab_size, self.hidden_size, dtype=self.dtype)
        self.position_embedding = nn.Embed(self.max_position_embeddings, self.hidden_size, dtype=self.dtype)

    def tokens(self, input_ids: jax.Array) -> jax.Array:
        """Returns the token embeddings, [B, T, D]."""
        return self.token_embedding(input_ids)

    def __call__(self, inputs_embeds: jax.Array) -> jax.Array:
        """Returns token embeddings [B, T, D] plus the embeddings of their positions."""
        return inputs_embeds.astype(self.dtype) + self.position_embedding(jnp.arange(inputs_embeds.shape[1]))


class CLIPTextTransformer(nn.Module):
    """The text encoder without projection: embeddings, causal transformer and final layer norm."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Creates the sub-modules."""
        self.embeddings = CLIPTextEmbeddings(
            self.vocab_size, self.hidden_size, self.max_position_embeddings, self.dtype
        )
        self.encoder = CLIPEncoder(
            self.num_hidden_layers,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.hidden_act,
            self.layer_norm_eps,
            self.dtype,
        )
        self.final_layer_norm = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype)

    def embed_tokens(self, input_ids: jax.Array) -> jax.Array:
        """See `CLIPTextModel.embed_tokens`."""
        return self.embeddings.tokens(input_ids)

    def skipping(self, input_ids: jax.Array, clip_skip: int) -> jax.Array:
        """See `CLIPTextModel.skipping`."""
        return self.final_layer_norm(self(input_ids).hidden_states[-(clip_skip + 1)])

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None = None) -> CLIPTextOutput:
        """See `CLIPTextModel.__call__`."""
        length = input_ids.shape[1]
        if length > self.max_position_embeddings:
            raise InputError(
                f"the prompt is {length} tokens long, the text encoder supports max_position_embeddings="
                f"{self.max_position_embeddings}: truncate it"
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        causal = jnp.tril(jnp.ones((1, 1, length, length), dtype=bool))
        hidden_states = self.encoder(self.embeddings(inputs_embeds), causal)
        last_hidden_state = self.final_layer_norm(hidden_states[-1])
        position = end_of_text_position(input_ids, self.eos_token_id)
        pooled = jnp.take_along_axis(last_hidden_state, position[:, None, None], axis=1)[:, 0]
        return CLIPTextOutput(last_hidden_state=last_hidden_state, hidden_states=hidden_states, pooled=pooled)


class CLIPTextModel(nn.Module):
    """CLIP's text encoder. Its parameters are under `text_model`, as in Stable Diffusion's checkpoints.

    The attributes have the names, defaults and meaning of transformers' config.json.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: width D of the states.
        intermediate_size: width of the feed-forward layers.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: attention heads per layer; must divide `hidden_size`.
        max_position_embeddings: maximal number of tokens of a prompt.
        hidden_act: 'quick_gelu' or 'gelu'.
        layer_norm_eps: epsilon of all layer norms.
        eos_token_id: id of the end-of-text token; for 2 see `end_of_text_position`.
        projection_dim: width of `text_embeds`; ignored by a model without projection.
        dtype: dtype of activations; statistics and softmax are always float32.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32) -> Self:
        """Builds the model of a parsed config.json; raises InputError for unsupported settings."""
        return cls(**read_clip_config(cls, TEXT_FIELDS, config), dtype=dtype)

    def setup(self) -> None:
        """Creates the sub-modules."""
        self.text_model = CLIPTextTransformer(
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.max_position_embeddings,
            self.hidden_act,
            self.layer_norm_eps,
            self.eos_token_id,
            self.dtype,
        )

    def embed_tokens(self, input_ids: jax.Array) -> jax.Array:
        """Returns the token embeddings [B, T, D] of ids int [B, T], to which learned offsets are added."""
        return self.text_model.embed_tokens(input_ids)

    def skipping(self, input_ids: jax.Array, clip_skip: int) -> jax.Array:
        """Returns the states of ids int [B, T] without the last `clip_skip` layers, after the final layer norm."""
        return self.text_model.skipping(input_ids, clip_skip)

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None = None) -> CLIPTextOutput:
        """Encodes prompts.

        Args:
            input_ids: int [B, T], T at most max_position_embeddings, each row with its end-of-text token.
            inputs_embeds: token embeddings [B, T, D] to use instead of those of `input_ids`, without position
                embeddings. `input_ids` still gives the position of the end-of-text token.

        Returns:
            The states and the pooled state, in `dtype`.

        Raises:
            InputError: T exceeds max_position_embeddings.
        """
        return self.text_model(input_ids, inputs_embeds)


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIPTextModel with the projection to CLIP's joint space of texts and images."""

    def setup(self) -> None:
        """Creates the sub-modules."""
        super().setup()
        self.text_projection = Dense(self.projection_dim, use_bias=False, dtype=self.dtype)

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None = None) -> CLIPTextOutput:
        """Encodes prompts as CLIPTextModel does, with `text_embeds` [B, projection_dim] in the output."""
        output = super().__call__(input_ids, inputs_embeds)
        text_embeds = self.text_projection(output.pooled)
        return CLIPTextOutput(output.last_hidden_state, output.hidden_states, output.pooled, text_embeds)
