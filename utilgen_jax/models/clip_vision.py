"""CLIP's vision encoder, as transformers' `CLIPVisionModelWithProjection` computes it."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.models.clip_layers import CLIP_FIELDS, CLIPEncoder, read_clip_config
from utilgen_jax.models.json_fields import (
    NUMBER,
    OFF,
    POSITIVE,
    WITHOUT_EFFECT,
    Kind,
    list_of,
    only,
    read_fields,
    whole,
)
from utilgen_jax.models.layers import Conv, Dense

# Of the channels of images in [0, 1] that OpenAI's CLIP was trained on; its preprocessor_config.json has them too.
CLIP_MEAN: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

# The fields of `image_encoder/config.json`, see `json_fields`.
VISION_FIELDS: dict[str, Kind] = CLIP_FIELDS | {
    "model_type": only("clip_vision_model"),
    "num_channels": only(3),
    "image_size": whole(1),
    "patch_size": whole(1),
}
# The fields of `preprocessor_config.json`, see `json_fields`; the sizes are compared with the encoder's.
PREPROCESSOR_FIELDS: dict[str, Kind] = {
    "do_resize": only(True),
    "size": WITHOUT_EFFECT,
    "resample": only(3),  # bicubic
    "do_center_crop": only(True),
    "crop_size": WITHOUT_EFFECT,
    "do_rescale": only(True),
    "rescale_factor": Kind("1/255", lambda value: POSITIVE.accepts(value) and abs(255 * value - 1) < 1e-6, True),
    "do_normalize": only(True),
    "image_mean": list_of(NUMBER, 3),
    "image_std": list_of(POSITIVE, 3),
    "do_pad": OFF,
    "default_to_square": OFF,
    "feature_extractor_type": only("CLIPFeatureExtractor", "CLIPImageProcessor"),
    "image_processor_type": only(
        "CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"
    ),
} | dict.fromkeys(
    # of images that are no RGB, and of how torch is to run
    "do_convert_rgb pad_size data_format input_data_format device return_tensors disable_grouping image_seq_length "
    "processor_class".split(),
    WITHOUT_EFFECT,
)
_DEFAULT_SIZE = 224  # transformers'


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


def read_preprocessor(config: Mapping[str, Any], image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of a parsed `preprocessor_config.json`; defaults are transformers'.

    Args:
        config: the parsed file.
        image_size: of the encoder that it is for, whose images are scaled and cropped to it.

    Raises:
        InputError: a setting is not supported.
    """
    where = "preprocessor_config.json"
    values = read_fields(where, PREPROCESSOR_FIELDS, config)
    sides = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    for name, expected in sides.items():
        value = values.get(name, _DEFAULT_SIZE)
        if value not in (image_size, expected) or isinstance(value, bool):
            raise InputError(
                f"{where}: {name} = {value!r} is not supported; the image_encoder's image_size = {image_size} is"
            )
    return tuple(values.get("image_mean", CLIP_MEAN)), tuple(values.get("image_std", CLIP_STD))


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
        return cls(**read_clip_config(cls, VISION_FIELDS, config), dtype=dtype)

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
