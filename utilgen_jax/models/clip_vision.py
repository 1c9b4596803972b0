"""CLIP's vision encoder, as transformers' `CLIPVisionModelWithProjection` computes it."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.models.clip_layers import CLIPEncoder, read_clip_config
from utilgen_jax.models.layers import Conv, Dense

# Of the channels of images in [0, 1] that OpenAI's CLIP was trained on; its preprocessor_config.json has them too.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@struct.dataclass
class CLIPVisionOutput:
    """Output of the vision encoder; D is hidden_size, P projection_dim, N the number of patches.

    Attributes:
        image_embeds: projection of `pooled`, [B, P].
        last_hidden_state: output of the last layer, class token first, not normalised, [B, 1 + N, D].
        pooled: class token of last_hidden_state after the final layer norm, [B, D].
    """

    image_embeds: jax.Array
    last_hidden_state: jax.Array
    pooled: jax.Array


class CLIPVisionEmbeddings(nn.Module):
    """Class token and patch embeddings, plus position embeddings: [B, S, S, num_channels] -> [B, 1 + N, D]."""

    hidden_size: int
    image_size: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        """Returns the embeddings, patches in row-major order after the class token."""
        patches = Conv(
            self.hidden_size,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixel_values)
        batch = patches.shape[0]
        class_embedding = self.param("class_embedding", nn.initializers.normal(0.02), (self.hidden_size,))
        class_token = jnp.broadcast_to(class_embedding.astype(self.dtype), (batch, 1, self.hidden_size))
        tokens = jnp.concatenate([class_token, patches.reshape(batch, -1, self.hidden_size)], axis=1)
        num_positions = (self.image_size // self.patch_size) ** 2 + 1
        positions = nn.Embed(num_positions, self.hidden_size, dtype=self.dtype, name="position_embedding")
        return tokens + positions(jnp.arange(num_positions))


class CLIPVisionTransformer(nn.Module):
    """The vision encoder without its projection: [B, S, S, num_channels] -> (last_hidden_state, pooled)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the last layer's output [B, 1 + N, D] and the normalised class token [B, D]."""
        embeddings = CLIPVisionEmbeddings(
            self.hidden_size, self.image_size, self.patch_size, self.dtype, name="embeddings"
        )(pixel_values)
        # 'pre_layrnorm' is the spelling of CLIP checkpoints.
        embeddings = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="pre_layrnorm")(embeddings)
        last_hidden_state = CLIPEncoder(
            self.num_hidden_layers,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.hidden_act,
            self.layer_norm_eps,
            self.dtype,
            name="encoder",
        )(embeddings)[-1]
        pooled = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="post_layernorm")(last_hidden_state[:, 0])
        return last_hidden_state, pooled


class CLIPVisionModelWithProjection(nn.Module):
    """CLIP's vision encoder with its projection.

    The attributes have the names, defaults and meaning of transformers' config.json.

    Attributes:
        hidden_size: width D of the states.
        intermediate_size: width of the feed-forward layers.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: attention heads per layer; must divide `hidden_size`.
        num_channels: channels of the images.
        image_size: height and width of the images.
        patch_size: height and width of a patch.
        hidden_act: 'quick_gelu' or 'gelu'.
        layer_norm_eps: epsilon of all layer norms.
        projection_dim: width of `image_embeds`.
        dtype: dtype of activations; statistics and softmax are always float32.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32) -> Self:
        """Builds the model of a parsed config.json; raises InputError for unsupported settings."""
        return cls(**read_clip_config(cls, config, "clip_vision_model"), dtype=dtype)

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> CLIPVisionOutput:
        """Encodes images.

        Args:
            pixel_values: [B, S, S, num_channels] with S = image_size, resized and normalised according to the
                checkpoint's preprocessor_config.json.

        Returns:
            The projected, last and pooled states, in `dtype`.

        Raises:
            InputError: the images have another shape.
        """
        expected = (self.image_size, self.image_size, self.num_channels)
        if pixel_values.shape[1:] != expected:
            raise InputError(
                f"the CLIP vision encoder needs images {expected}, got {pixel_values.shape[1:]}; resize them"
            )
        last_hidden_state, pooled = CLIPVisionTransformer(
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.image_size,
            self.patch_size,
            self.hidden_act,
            self.layer_norm_eps,
            self.dtype,
            name="vision_model",
        )(pixel_values)
        image_embeds = Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection")(pooled)
        return CLIPVisionOutput(image_embeds=image_embeds, last_hidden_state=last_hidden_state, pooled=pooled)
