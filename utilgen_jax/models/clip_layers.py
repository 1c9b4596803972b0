"""The transformer shared by CLIP's text and vision encoders, and parsing of their config.json.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.dot_product_attention import dot_product_attention
from utilgen_jax.models.json_fields import OFF, POSITIVE, WITHOUT_EFFECT, Kind, only, read_fields, whole
from utilgen_jax.models.layers import Dense


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x * sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x), with Phi the normal distribution function (not the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class CLIPAttention(nn.Module):
    """Multi-head self-attention: [B, T, hidden_size] -> [B, T, hidden_size]; for the mask see `CLIPEncoder`."""

    hidden_size: int
    num_attention_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the attention's output, before the residual sum."""
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.hidden_size // self.num_attention_heads)
        query, key, value = (
            Dense(self.hidden_size, dtype=self.dtype, name=name)(hidden_states).reshape(heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = dot_product_attention(query, key, value, mask=mask)
        return Dense(self.hidden_size, dtype=self.dtype, name="out_proj")(attended.reshape(hidden_states.shape))


class CLIPMLP(nn.Module):
    """Two dense layers around `hidden_act`: [B, T, hidden_size] -> [B, T, hidden_size]."""

    hidden_size: int
    intermediate_size: int
    hidden_act: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the feed-forward output, before the residual sum."""
        hidden_states = Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(hidden_states)
        return Dense(self.hidden_size, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](hidden_states))


class CLIPEncoderLayer(nn.Module):
    """One pre-norm transformer layer: [B, T, hidden_size] -> [B, T, hidden_size]."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the layer's output."""
        normed = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm1")(hidden_states)
        attention = CLIPAttention(self.hidden_size, self.num_attention_heads, self.dtype, name="self_attn")
        hidden_states = hidden_states + attention(normed, mask)
        normed = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm2")(hidden_states)
        mlp = CLIPMLP(self.hidden_size, self.intermediate_size, self.hidden_act, self.dtype, name="mlp")
        return hidden_states + mlp(normed)


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Applies the layers and returns all intermediate states.

        Args:
            hidden_states: [B, T, hidden_size], the embeddings.
            mask: bool, broadcastable to [B, heads, T, T]; False hides a key from a query. None hides nothing.

        Returns:
            num_hidden_layers + 1 arrays [B, T, hidden_size]: the input, then the output of each layer.
        """
        states = [hidden_states]
        for index in range(self.num_hidden_layers):
            layer = CLIPEncoderLayer(
                self.hidden_size,
                self.intermediate_size,
                self.num_attention_heads,
                self.hidden_act,
                self.layer_norm_eps,
                self.dtype,
                name=f"layers.{index}",
            )
            states.append(layer(states[-1], mask))
        return tuple(states)


# Fields that CLIP's towers have in common, see `json_fields`.
_SHARED_FIELDS: dict[str, Kind] = {
    "hidden_size": whole(1),
    "intermediate_size": whole(1),
    "num_hidden_layers": whole(1),
    "num_attention_heads": whole(1),
    "hidden_act": only(*ACTIVATIONS),
    "layer_norm_eps": POSITIVE,
    "projection_dim": whole(1),
    "pruned_heads": only({}, None),
    "add_cross_attention": OFF,
    "is_decoder": OFF,
    "is_encoder_decoder": OFF,
    "use_attention_mask": OFF,
}
# Of training, of other tasks, of text generation, and of how torch is to run; transformers 4 writes them to each file.
_WITHOUT_EFFECT = """
    _name_or_path architectures attention_dropout attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range label2id length_penalty
    max_length min_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
"""
CLIP_FIELDS: dict[str, Kind] = dict.fromkeys(_WITHOUT_EFFECT.split(), WITHOUT_EFFECT) | _SHARED_FIELDS


def read_clip_config(module: type[nn.Module], fields: Mapping[str, Kind], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a CLIP module from a parsed config.json, after checking them.

    Missing keys have the module's defaults, which are transformers'.

    Args:
        module: module class, whose fields have the names of the keys.
        fields: of the file, see `json_fields`.
        config: the parsed config.json.

    Returns:
        Keyword arguments for `module`.

    Raises:
        InputError: the model has another type, or a value is not supported.
    """
    where = f"{module.__name__} config"
    values = read_fields(where, fields, config)
    own = {name: field.default for name, field in module.__dataclass_fields__.items()}
    settings = {name: value for name, value in values.items() if name in own and name != "dtype"}
    model: dict[str, Any] = own | settings
    width, heads = model["hidden_size"], model["num_attention_heads"]
    if width % heads:
        raise InputError(f"{where}: num_attention_heads = {heads} must divide hidden_size = {width}")
    return settings
