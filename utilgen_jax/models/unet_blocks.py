"""Residual, down, middle and up blocks of Stable Diffusion's UNet."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from utilgen_jax.models.attention import Transformer2DModel
from utilgen_jax.models.gradient_checkpointing import checkpointed
from utilgen_jax.models.layers import Conv, Dense


class ResnetBlock2D(nn.Module):
    """Two 3×3 convolutions after group norm and SiLU, with the time embedding added in between, and a shortcut.

    Attributes:
        out_channels: channels of the result; the shortcut is a 1×1 convolution if the input has another number.
        norm_num_groups: groups of both group norms.
        norm_eps: epsilon of both group norms.
        dtype: dtype of activations.
    """

    out_channels: int
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, time_embedding: jax.Array | None = None) -> jax.Array:
        """Maps hidden_states [B, h, w, C] and time_embedding [B, E] (None: not added) to [B, h, w, out_channels]."""

        def norm_silu(name: str, inputs: jax.Array) -> jax.Array:
            return nn.silu(
                nn.GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name=name)(inputs)
            )

        def conv(name: str, inputs: jax.Array) -> jax.Array:
            return Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype, name=name)(inputs)

        residual = conv("conv1", norm_silu("norm1", hidden_states))
        if time_embedding is not None:
            shift = Dense(self.out_channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
            residual = residual + shift[:, None, None, :]
        residual = conv("conv2", norm_silu("norm2", residual))
        if hidden_states.shape[-1] != self.out_channels:
            shortcut = Conv(self.out_channels, (1, 1), dtype=self.dtype, name="conv_shortcut")
            hidden_states = shortcut(hidden_states)
        return hidden_states + residual


class Downsample2D(nn.Module):
    """3×3 convolution with stride 2.

    Attributes:
        padding: 1 pads all sides; 0 pads only the bottom and the right, as in the autoencoder.
        dtype: dtype of activations.
    """

    padding: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h / 2, w / 2, C]; half of an odd side is rounded up with padding 1, else down."""
        padding = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
        conv = Conv(hidden_states.shape[-1], (3, 3), strides=2, padding=padding, dtype=self.dtype, name="conv")
        return conv(hidden_states)


class Upsample2D(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """Maps [B, h, w, C] to [B, 2 h, 2 w, C], or to `size` (height, width), for odd sizes."""
        batch, height, width, channels = hidden_states.shape
        if size in (None, (2 * height, 2 * width)):
            repeated = jnp.broadcast_to(
                hidden_states[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
            ).reshape(batch, 2 * height, 2 * width, channels)
        else:
            rows, columns = (np.arange(new) * old // new for old, new in zip((height, width), size, strict=True))
            repeated = hidden_states[:, rows][:, :, columns]
        return Conv(channels, (3, 3), padding=1, dtype=self.dtype, name="conv")(repeated)


class _Block(nn.Module):
    """Base class of the UNet's blocks.

    Attributes:
        out_channels: channels of the result.
        num_heads: attention heads of the transformers; None for a block without transformers.
        transformer_layers: see `Transformer2DModel.num_layers`.
        norm_num_groups: groups of the group norms.
        norm_eps: epsilon of the group norms of the residual blocks.
        use_linear_projection: see `Transformer2DModel`.
        dtype: dtype of activations.
        attention_implementation: see `dot_product_attention`.
        gradient_checkpointing: key of `GRADIENT_CHECKPOINTING`.
    """

    out_channels: int
    num_heads: int | None
    transformer_layers: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    gradient_checkpointing: str = "none"

    @nn.nowrap
    def resnet(self, index: int, hidden_states: jax.Array, time_embedding: jax.Array) -> jax.Array:
        """Applies the residual block `index`."""
        return checkpointed(ResnetBlock2D, "layer", self.gradient_checkpointing)(
            self.out_channels, self.norm_num_groups, self.norm_eps, self.dtype, name=f"resnets.{index}"
        )(hidden_states, time_embedding)

    @nn.nowrap
    def attention(self, index: int, hidden_states: jax.Array, encoder_hidden_states: jax.Array) -> jax.Array:
        """Applies the transformer `index`, if the block has transformers."""
        if self.num_heads is None:
            return hidden_states
        return checkpointed(Transformer2DModel, "layer", self.gradient_checkpointing)(
            self.num_heads,
            self.norm_num_groups,
            self.use_linear_projection,
            self.dtype,
            self.attention_implementation,
            self.transformer_layers,
            name=f"attentions.{index}",
        )(hidden_states, encoder_hidden_states)


class DownBlock2D(_Block):
    """diffusers' DownBlock2D, or CrossAttnDownBlock2D with `num_heads`.

    Attributes:
        num_layers: number of residual blocks.
        downsample_padding: see `Downsample2D`; None for the last block, which keeps the size.
    """

    num_layers: int = 2
    downsample_padding: int | None = 1

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, time_embedding: jax.Array, encoder_hidden_states: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Maps [B, h, w, C], [B, E], [B, T, D] to ([B, h', w', out_channels], outputs of all layers as skips)."""
        skips: tuple[jax.Array, ...] = ()
        for index in range(self.num_layers):
            hidden_states = self.resnet(index, hidden_states, time_embedding)
            hidden_states = self.attention(index, hidden_states, encoder_hidden_states)
            skips += (hidden_states,)
        if self.downsample_padding is not None:
            hidden_states = Downsample2D(self.downsample_padding, self.dtype, name="downsamplers.0")(hidden_states)
            skips += (hidden_states,)
        return hidden_states, skips


class MidBlock2D(_Block):
    """diffusers' UNetMidBlock2DCrossAttn: residual block, transformer, residual block."""

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, time_embedding: jax.Array, encoder_hidden_states: jax.Array
    ) -> jax.Array:
        """Maps [B, h, w, C], [B, E], [B, T, D] to [B, h, w, out_channels]."""
        hidden_states = self.resnet(0, hidden_states, time_embedding)
        hidden_states = self.attention(0, hidden_states, encoder_hidden_states)
        return self.resnet(1, hidden_states, time_embedding)


class UpBlock2D(_Block):
    """diffusers' UpBlock2D, or CrossAttnUpBlock2D with `num_heads`; one residual block for each skip.

    Attributes:
        upsample_size: final (height, width), see `Upsample2D`; None for the last block, which keeps the size.
    """

    upsample_size: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        skips: tuple[jax.Array, ...],
        time_embedding: jax.Array,
        encoder_hidden_states: jax.Array,
    ) -> jax.Array:
        """Maps [B, h, w, C], skips [B, h, w, *] (last first), [B, E], [B, T, D] to [B, h', w', out_channels]."""
        for index, skip in enumerate(reversed(skips)):
            hidden_states = jnp.concatenate([hidden_states, skip], axis=-1)
            hidden_states = self.resnet(index, hidden_states, time_embedding)
            hidden_states = self.attention(index, hidden_states, encoder_hidden_states)
        if self.upsample_size is not None:
            hidden_states = Upsample2D(self.dtype, name="upsamplers.0")(hidden_states, self.upsample_size)
        return hidden_states
