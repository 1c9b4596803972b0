"""Stable Diffusion's UNet (1.x, 2.x, 2.1-unCLIP, XL, Turbo), as diffusers' torch UNet2DConditionModel computes it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.embeddings import TimestepEmbedding, timestep_embedding
from utilgen_jax.models.gradient_checkpointing import check_gradient_checkpointing, checkpointed
from utilgen_jax.models.json_fields import (
    NUMBER,
    OFF,
    POSITIVE,
    TRUTH,
    WITHOUT_EFFECT,
    Kind,
    either,
    list_of,
    only,
    optional,
    read_fields,
    whole,
)
from utilgen_jax.models.layers import Conv
from utilgen_jax.models.unet_blocks import DownBlock2D, MidBlock2D, UpBlock2D

_DOWN_BLOCK_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # has transformers?
_UP_BLOCK_TYPES = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}

_MID_BLOCK_TYPE = "UNetMidBlock2DCrossAttn"

# Height and width of the original image, top and left of the crop, height and width of the image to generate.
NUM_SIZES = 6

# The fields of `unet/config.json`, see `json_fields`.
UNET_FIELDS: Mapping[str, Kind] = {
    "sample_size": optional(either(whole(1), list_of(whole(1), 2))),
    "in_channels": whole(1),
    "out_channels": whole(1),
    "center_input_sample": TRUTH,
    "flip_sin_to_cos": TRUTH,
    "freq_shift": NUMBER,
    "down_block_types": list_of(only(*_DOWN_BLOCK_TYPES)),
    "mid_block_type": only(_MID_BLOCK_TYPE, None),
    "up_block_types": list_of(only(*_UP_BLOCK_TYPES)),
    "block_out_channels": list_of(whole(1)),
    "layers_per_block": whole(1),
    "downsample_padding": only(0, 1),
    "norm_num_groups": whole(1),
    "norm_eps": POSITIVE,
    "cross_attention_dim": whole(1),
    "attention_head_dim": either(whole(1), list_of(whole(1))),
    "use_linear_projection": TRUTH,
    "class_embed_type": only(None, "projection"),
    "projection_class_embeddings_input_dim": optional(whole(1)),
    "time_cond_proj_dim": optional(whole(1)),
    "addition_embed_type": only(None, "text_time"),
    "addition_time_embed_dim": optional(whole(1)),
    "transformer_layers_per_block": either(whole(1), list_of(whole(1))),
    "reverse_transformer_layers_per_block": optional(list_of(whole(1))),
    # diffusers' defaults; the models that have others are none of Stable Diffusion's
    "act_fn": only("silu"),
    "attention_type": only("default"),
    "class_embeddings_concat": OFF,
    "conv_in_kernel": only(3),
    "conv_out_kernel": only(3),
    "cross_attention_norm": OFF,
    "dropout": only(0),
    "dual_cross_attention": OFF,
    "encoder_hid_dim": OFF,
    "encoder_hid_dim_type": OFF,
    "mid_block_only_cross_attention": OFF,
    "mid_block_scale_factor": only(1),
    "num_attention_heads": OFF,
    "num_class_embeds": OFF,
    "only_cross_attention": OFF,
    "resnet_out_scale_factor": only(1),
    "resnet_skip_time_act": OFF,
    "resnet_time_scale_shift": only("default"),
    "time_embedding_act_fn": OFF,
    "time_embedding_dim": OFF,
    "time_embedding_type": only("positional"),
    "timestep_post_act": OFF,
    # of kinds of `addition_embed_type` that are not supported
    "addition_embed_type_num_heads": WITHOUT_EFFECT,
    # scores are always float32
    "upcast_attention": WITHOUT_EFFECT,
}


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or the velocity) in latents, conditioned on the timestep and a text.

    The attributes have the names, defaults and meaning of diffusers' config.json.

    Attributes:
        sample_size: height and width of the training latents, or both in a tuple.
        in_channels: channels of the latents.
        out_channels: channels of the prediction.
        center_input_sample: whether to map the latents from [0, 1] to [-1, 1] first.
        flip_sin_to_cos: see `timestep_embedding`.
        freq_shift: see `timestep_embedding`.
        down_block_types: 'DownBlock2D' or 'CrossAttnDownBlock2D' for each resolution.
        mid_block_type: None for a UNet without blocks between the way down and the way up, as tiny-sd has.
        up_block_types: 'UpBlock2D' or 'CrossAttnUpBlock2D' for each resolution, the smallest first.
        block_out_channels: channels at each resolution, the largest resolution first.
        layers_per_block: residual blocks per down block; up blocks have one more.
        downsample_padding: see `Downsample2D`.
        norm_num_groups: groups of all group norms; must divide all entries of `block_out_channels`.
        norm_eps: epsilon of the group norms of residual blocks and of the output.
        cross_attention_dim: width of `encoder_hidden_states`.
        attention_head_dim: NUMBER of attention heads, for all or for each resolution (diffusers' misnomer).
        use_linear_projection: see `Transformer2DModel`.
        class_embed_type: 'projection' adds a projection of `class_labels` to the time embedding (unCLIP); else None.
        addition_embed_type: 'text_time' adds a projection of a text's pooled state and of an image's sizes to the time
            embedding (XL); else None.
        projection_class_embeddings_input_dim: width of the input of either projection.
        addition_time_embed_dim: width of the embedding of each of the sizes.
        transformer_layers_per_block: blocks of each transformer, for all or for each resolution.
        reverse_transformer_layers_per_block: those on the way up, the smallest resolution first; None for the same.
        time_cond_proj_dim: width of `timestep_cond` (latent consistency models); None without.
        gradient_checkpointing: what the backward pass recomputes, a key of `GRADIENT_CHECKPOINTING`: 'none';
            'products', all but the outputs of convolutions and dense layers; 'layers', the intermediate results of each
            residual block and transformer; 'blocks', those of the block of each resolution.
        attention_implementation: see `dot_product_attention`.
        dtype: dtype of activations; statistics, softmax and the time embedding are always float32.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = _MID_BLOCK_TYPE
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    projection_class_embeddings_input_dim: int | None = None
    addition_time_embed_dim: int | None = None
    transformer_layers_per_block: int | tuple[int, ...] = 1
    reverse_transformer_layers_per_block: tuple[int, ...] | None = None
    time_cond_proj_dim: int | None = None
    gradient_checkpointing: str = "none"
    attention_implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32, gradient_checkpointing: str = "none"
    ) -> "UNet2DConditionModel":
        """Builds the model of a parsed diffusers config.json; missing settings have diffusers' defaults.

        Raises:
            InputError: a setting is not supported, or settings are inconsistent.
        """
        values = read_fields("UNet config", UNET_FIELDS, config)
        settings = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        model = cls(**settings, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
        model._check()
        return model

    @nn.nowrap
    def _check(self) -> None:
        """Raises InputError if settings are not supported or inconsistent."""
        check_gradient_checkpointing(self.gradient_checkpointing)
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                entries = len(getattr(self, name))
                raise InputError(f"UNet config: {name} has {entries} entries, block_out_channels has {levels}")
        if len(self.heads_per_level) != levels:
            raise InputError(
                f"UNet config: attention_head_dim = {self.attention_head_dim!r} must be one or {levels} integers"
            )
        for channels, heads in zip(self.block_out_channels, self.heads_per_level, strict=True):
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("attention_head_dim", heads)):
                if channels % divisor:
                    raise InputError(
                        f"UNet config: {name} = {divisor!r} does not divide block_out_channels' {channels}"
                        " (attention_head_dim is the number of heads)"
                    )
        for name, layers in (
            ("transformer_layers_per_block", self.layers_down),
            ("reverse_transformer_layers_per_block", self.layers_up),
        ):
            if len(layers) != levels:
                raise InputError(f"UNet config: {name} = {getattr(self, name)!r} must have {levels} entries")
        self._check_label_width()

    @nn.nowrap
    def _check_label_width(self) -> None:
        width, sizes = self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
        if self.class_embed_type is not None and self.addition_embed_type is not None:
            raise InputError(
                "UNet config: class_embed_type and addition_embed_type exclude each other; set one to null"
            )
        if self.class_embed_type == "projection" and width is None:
            raise InputError("UNet config: class_embed_type = 'projection' needs projection_class_embeddings_input_dim")
        if self.addition_embed_type is not None and (width is None or sizes is None or width <= NUM_SIZES * sizes):
            raise InputError(
                f"UNet config: projection_class_embeddings_input_dim = {width!r} must be more than {NUM_SIZES} times "
                f"addition_time_embed_dim = {sizes!r} with addition_embed_type = 'text_time'"
            )

    @property
    def layers_down(self) -> tuple[int, ...]:
        """Blocks of each transformer by resolution on the way down, the largest resolution first."""
        if isinstance(self.transformer_layers_per_block, int):
            return (self.transformer_layers_per_block,) * len(self.block_out_channels)
        return self.transformer_layers_per_block

    @property
    def layers_up(self) -> tuple[int, ...]:
        """Those on the way up, the smallest resolution first."""
        return self.reverse_transformer_layers_per_block or self.layers_down[::-1]

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text state that the UNet sees; None where it sees none."""
        if self.addition_embed_type is None:
            return None
        assert self.projection_class_embeddings_input_dim is not None
        assert self.addition_time_embed_dim is not None
        return self.projection_class_embeddings_input_dim - NUM_SIZES * self.addition_time_embed_dim

    @property
    def label_width(self) -> int | None:
        """Width of `class_labels`; None where there are none."""
        if self.pooled_width is not None:
            return self.pooled_width + NUM_SIZES
        return None if self.class_embed_type is None else self.projection_class_embeddings_input_dim

    @property
    def heads_per_level(self) -> tuple[int, ...]:
        """The number of attention heads at each resolution, the largest resolution first."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return self.attention_head_dim

    @nn.nowrap
    def example_inputs(self, batch_size: int = 1) -> dict[str, jax.Array]:
        """Returns minimal arguments for `init` and `jax.eval_shape`, zeros by name."""
        size = 2 ** (len(self.block_out_channels) - 1)
        inputs = {
            "sample": jnp.zeros((batch_size, size, size, self.in_channels)),
            "timesteps": jnp.zeros((batch_size,), jnp.int32),
            "encoder_hidden_states": jnp.zeros((batch_size, 1, self.cross_attention_dim)),
        }
        if self.label_width is not None:
            inputs["class_labels"] = jnp.zeros((batch_size, self.label_width))
        return inputs

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        class_labels: jax.Array | None = None,
        timestep_cond: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the training target from noisy latents.

        Args:
            sample: noisy latents [B, h, w, in_channels].
            timesteps: timesteps of the noise schedule, [B] or scalar.
            encoder_hidden_states: text embedding [B, T, cross_attention_dim].
            class_labels: [B, label_width]. With class_embed_type 'projection', in Stable Diffusion 2.1-unCLIP, the
                noised image embedding ‖ the embedding of its noise level; with addition_embed_type 'text_time', in XL,
                the pooled text state ‖ the sizes of `NUM_SIZES` in pixels, float32; else None.
            timestep_cond: [B, time_cond_proj_dim] or [1, time_cond_proj_dim], the embedding of a guidance scale; None
                is that of none.

        Returns:
            [B, h, w, out_channels] of dtype `dtype`.

        Raises:
            InputError: class_labels or timestep_cond are missing or not supported.
        """
        if (class_labels is None) != (self.label_width is None):
            state = "missing" if class_labels is None else "given"
            kinds = f"class_embed_type = {self.class_embed_type!r}, addition_embed_type = {self.addition_embed_type!r}"
            raise InputError(f"UNet: class_labels are {state}, but {kinds}")

        if timestep_cond is not None and self.time_cond_proj_dim is None:
            raise InputError("UNet: timestep_cond is given, but time_cond_proj_dim = None")

        time_embedding = self._embed_time(jnp.broadcast_to(timesteps, sample.shape[:1]), class_labels, timestep_cond)
        encoder_hidden_states = encoder_hidden_states.astype(self.dtype)
        hidden_states = sample.astype(self.dtype)
        if self.center_input_sample:
            hidden_states = 2 * hidden_states - 1

        hidden_states = self._conv(self.block_out_channels[0], "conv_in")(hidden_states)
        skips = [hidden_states]
        last = len(self.block_out_channels) - 1
        for level, block_type in enumerate(self.down_block_types):
            block = self._block(
                DownBlock2D,
                f"down_blocks.{level}",
                level,
                _DOWN_BLOCK_TYPES[block_type],
                transformer_layers=self.layers_down[level],
                num_layers=self.layers_per_block,
                downsample_padding=None if level == last else self.downsample_padding,
            )
            hidden_states, block_skips = block(hidden_states, time_embedding, encoder_hidden_states)
            skips.extend(block_skips)

        if self.mid_block_type is not None:
            block = self._block(MidBlock2D, "mid_block", last, True, transformer_layers=self.layers_down[last])
            hidden_states = block(hidden_states, time_embedding, encoder_hidden_states)

        taken = self.layers_per_block + 1
        for index, block_type in enumerate(self.up_block_types):
            level = last - index
            upsample_size = skips[-taken - 1].shape[1:3] if level else None  # of the next block's skips
            block = self._block(
                UpBlock2D,
                f"up_blocks.{index}",
                level,
                _UP_BLOCK_TYPES[block_type],
                transformer_layers=self.layers_up[index],
                upsample_size=upsample_size,
            )
            hidden_states = block(hidden_states, tuple(skips[-taken:]), time_embedding, encoder_hidden_states)
            del skips[-taken:]

        norm = nn.GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="conv_norm_out")
        return self._conv(self.out_channels, "conv_out")(nn.silu(norm(hidden_states)))

    @nn.nowrap
    def _conv(self, features: int, name: str) -> Conv:
        """Makes a size-preserving 3×3 convolution."""
        return Conv(features, (3, 3), padding=1, dtype=self.dtype, name=name)

    @nn.nowrap
    def _embed_time(
        self, timesteps: jax.Array, class_labels: jax.Array | None, timestep_cond: jax.Array | None
    ) -> jax.Array:
        """Returns the sum of the embeddings of timesteps and class labels, [B, 4 block_out_channels[0]]."""
        width = 4 * self.block_out_channels[0]
        sinusoids = timestep_embedding(timesteps, self.block_out_channels[0], self.flip_sin_to_cos, self.freq_shift)
        if self.time_cond_proj_dim is not None and timestep_cond is None:
            timestep_cond = jnp.zeros((1, self.time_cond_proj_dim))  # its projection has no bias
        embedding = TimestepEmbedding(width, name="time_embedding")(sinusoids, timestep_cond)
        if class_labels is not None and self.pooled_width is not None:
            pooled, sizes = class_labels[:, : self.pooled_width], class_labels[:, self.pooled_width :]
            of_sizes = timestep_embedding(
                sizes.reshape(-1), self.addition_time_embed_dim or 0, self.flip_sin_to_cos, self.freq_shift
            )
            added = jnp.concatenate([pooled, of_sizes.reshape(len(sizes), -1)], axis=-1)
            embedding = embedding + TimestepEmbedding(width, name="add_embedding")(added)
        elif class_labels is not None:
            embedding = embedding + TimestepEmbedding(width, name="class_embedding")(class_labels)
        return embedding.astype(self.dtype)

    @nn.nowrap
    def _block(self, block: type[nn.Module], name: str, level: int, has_attention: bool, **settings: Any) -> nn.Module:
        """Makes a block for the resolution `level`."""
        return checkpointed(block, "block", self.gradient_checkpointing)(
            out_channels=self.block_out_channels[level],
            num_heads=self.heads_per_level[level] if has_attention else None,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            use_linear_projection=self.use_linear_projection,
            dtype=self.dtype,
            attention_implementation=self.attention_implementation,
            gradient_checkpointing=self.gradient_checkpointing,
            name=name,
            **settings,
        )
