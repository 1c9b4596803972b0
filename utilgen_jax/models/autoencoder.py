"""The variational autoencoder between images and latents, as diffusers' torch AutoencoderKL computes it.

Architecture: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.dot_product_attention import dot_product_attention
from utilgen_jax.models.gradient_checkpointing import check_gradient_checkpointing, checkpointed
from utilgen_jax.models.json_fields import (
    OFF,
    POSITIVE,
    TRUTH,
    WITHOUT_EFFECT,
    Kind,
    list_of,
    only,
    read_fields,
    whole,
)
from utilgen_jax.models.unet_blocks import Downsample2D, ResnetBlock2D, Upsample2D

_DOWN_BLOCK_TYPE = "DownEncoderBlock2D"
_UP_BLOCK_TYPE = "UpDecoderBlock2D"

# The fields of `vae/config.json`, see `json_fields`.
AUTOENCODER_FIELDS: Mapping[str, Kind] = {
    "in_channels": whole(1),
    "out_channels": whole(1),
    "down_block_types": list_of(only(_DOWN_BLOCK_TYPE)),
    "up_block_types": list_of(only(_UP_BLOCK_TYPE)),
    "block_out_channels": list_of(whole(1)),
    "layers_per_block": whole(1),
    "act_fn": only("silu", "swish"),
    "latent_channels": whole(1),
    "norm_num_groups": whole(1),
    "scaling_factor": POSITIVE,
    "use_quant_conv": TRUTH,
    "use_post_quant_conv": TRUTH,
    "mid_block_add_attention": TRUTH,
    # of other models than Stable Diffusion's
    "shift_factor": OFF,
    "latents_mean": OFF,
    "latents_std": OFF,
    "force_upcast": TRUTH,
    # of tiling
    "sample_size": WITHOUT_EFFECT,
}

Resample = Literal["down", "up"] | None

_NORM_EPS = 1e-6  # of all group norms in this module


def mode(moments: jax.Array) -> jax.Array:
    """Returns the posterior's mean [B, h, w, c] from its moments [B, h, w, 2c] (see `AutoencoderKL.encode`)."""
    return _mean_and_log_variance(moments)[0]


def sample_posterior(moments: jax.Array, key: jax.Array) -> jax.Array:
    """Draws latents [B, h, w, c] from the posterior with moments [B, h, w, 2c]: mean + standard deviation * noise."""
    mean, log_variance = _mean_and_log_variance(moments)
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(moments: jax.Array) -> jax.Array:
    """Returns KL(posterior || standard normal) in nats, [B], summed over each latent, from moments [B, h, w, 2c].

    Kingma and Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114, appendix B.
    """
    mean, log_variance = _mean_and_log_variance(moments)
    return 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1.0 - log_variance, axis=(1, 2, 3))


def _mean_and_log_variance(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both halves of the moments, the log-variance clipped as in diffusers to keep its exponential finite."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all pixels, with a group norm and a residual connection.

    Attributes:
        norm_num_groups: groups of the group norm.
        dtype: dtype of activations.
    """

    norm_num_groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        batch, height, width, channels = hidden_states.shape
        normed = nn.GroupNorm(self.norm_num_groups, epsilon=_NORM_EPS, dtype=self.dtype, name="group_norm")(
            hidden_states
        )

        def project(name: str) -> jax.Array:
            projected = nn.Dense(channels, dtype=self.dtype, name=name)(normed)
            return projected.reshape(batch, height * width, 1, channels)

        attended = dot_product_attention(project("to_q"), project("to_k"), project("to_v"))
        return hidden_states + nn.Dense(channels, dtype=self.dtype, name="to_out.0")(
            attended.reshape(hidden_states.shape)
        )


class MidBlock(nn.Module):
    """Residual block, attention, residual block.

    Attributes:
        norm_num_groups: groups of the group norms.
        add_attention: whether there is attention.
        dtype: dtype of activations.
        gradient_checkpointing: key of `GRADIENT_CHECKPOINTING`.
    """

    norm_num_groups: int
    add_attention: bool = True
    dtype: jnp.dtype = jnp.float32
    gradient_checkpointing: str = "none"

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        settings = (hidden_states.shape[-1], self.norm_num_groups, _NORM_EPS, self.dtype)
        resnet = checkpointed(ResnetBlock2D, "layer", self.gradient_checkpointing)
        hidden_states = resnet(*settings, name="resnets.0")(hidden_states)
        if self.add_attention:
            attention = checkpointed(SpatialAttention, "layer", self.gradient_checkpointing)
            hidden_states = attention(self.norm_num_groups, self.dtype, name="attentions.0")(hidden_states)
        return resnet(*settings, name="resnets.1")(hidden_states)


class ResolutionBlock(nn.Module):
    """Residual blocks at one resolution, then resampling: diffusers' DownEncoderBlock2D and UpDecoderBlock2D.

    Attributes:
        out_channels: channels of the result.
        num_layers: number of residual blocks.
        norm_num_groups: groups of the group norms.
        resample: 'down' halves the final size, 'up' doubles it, None keeps it.
        dtype: dtype of activations.
        gradient_checkpointing: key of `GRADIENT_CHECKPOINTING`.
    """

    out_channels: int
    num_layers: int
    norm_num_groups: int
    resample: Resample
    dtype: jnp.dtype = jnp.float32
    gradient_checkpointing: str = "none"

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', out_channels]."""
        for index in range(self.num_layers):
            hidden_states = checkpointed(ResnetBlock2D, "layer", self.gradient_checkpointing)(
                self.out_channels, self.norm_num_groups, _NORM_EPS, self.dtype, name=f"resnets.{index}"
            )(hidden_states)
        if self.resample == "down":
            return Downsample2D(padding=0, dtype=self.dtype, name="downsamplers.0")(hidden_states)
        if self.resample == "up":
            return Upsample2D(self.dtype, name="upsamplers.0")(hidden_states)
        return hidden_states


class Encoder(nn.Module):
    """Maps images to moments, before `quant_conv`; for the attributes see `AutoencoderKL`."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    mid_block_add_attention: bool
    dtype: jnp.dtype = jnp.float32
    gradient_checkpointing: str = "none"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, out_channels]."""
        hidden_states = nn.Conv(self.block_out_channels[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(images)
        for index, channels in enumerate(self.block_out_channels):
            resample: Resample = "down" if index < len(self.block_out_channels) - 1 else None
            hidden_states = checkpointed(ResolutionBlock, "block", self.gradient_checkpointing)(
                channels,
                self.layers_per_block,
                self.norm_num_groups,
                resample,
                self.dtype,
                self.gradient_checkpointing,
                name=f"down_blocks.{index}",
            )(hidden_states)
        hidden_states = checkpointed(MidBlock, "block", self.gradient_checkpointing)(
            self.norm_num_groups,
            self.mid_block_add_attention,
            self.dtype,
            self.gradient_checkpointing,
            name="mid_block",
        )(hidden_states)
        norm = nn.GroupNorm(self.norm_num_groups, epsilon=_NORM_EPS, dtype=self.dtype, name="conv_norm_out")
        return nn.Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(
            nn.silu(norm(hidden_states))
        )


class Decoder(nn.Module):
    """Maps latents, after `post_quant_conv`, to images; for the attributes see `AutoencoderKL`."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    mid_block_add_attention: bool
    dtype: jnp.dtype = jnp.float32
    gradient_checkpointing: str = "none"

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, H, W, out_channels]."""
        hidden_states = nn.Conv(self.block_out_channels[-1], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(
            latents
        )
        hidden_states = checkpointed(MidBlock, "block", self.gradient_checkpointing)(
            self.norm_num_groups,
            self.mid_block_add_attention,
            self.dtype,
            self.gradient_checkpointing,
            name="mid_block",
        )(hidden_states)
        for index, channels in enumerate(reversed(self.block_out_channels)):
            resample: Resample = "up" if index < len(self.block_out_channels) - 1 else None
            num_layers = self.layers_per_block + 1  # one more than in the encoder
            hidden_states = checkpointed(ResolutionBlock, "block", self.gradient_checkpointing)(
                channels,
                num_layers,
                self.norm_num_groups,
                resample,
                self.dtype,
                self.gradient_checkpointing,
                name=f"up_blocks.{index}",
            )(hidden_states)
        norm = nn.GroupNorm(self.norm_num_groups, epsilon=_NORM_EPS, dtype=self.dtype, name="conv_norm_out")
        return nn.Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(
            nn.silu(norm(hidden_states))
        )


class AutoencoderKL(nn.Module):
    """Encodes images as latents of a lower resolution, and decodes them.

    The attributes have the names, defaults and meaning of diffusers' config.json. `scaling_factor` is for the
    caller; this module does not apply it.

    Attributes:
        in_channels: channels of the images to encode.
        out_channels: channels of the decoded images.
        down_block_types: 'DownEncoderBlock2D' for each resolution.
        up_block_types: 'UpDecoderBlock2D' for each resolution.
        block_out_channels: channels at each resolution, the largest resolution first.
        layers_per_block: residual blocks per encoder block; decoder blocks have one more.
        act_fn: 'silu', or its synonym 'swish'.
        latent_channels: channels of the latents.
        norm_num_groups: groups of all group norms; must divide all entries of `block_out_channels`.
        scaling_factor: factor that gives the latents of the UNet a variance of about one.
        use_quant_conv: whether a 1×1 convolution follows the encoder.
        use_post_quant_conv: whether a 1×1 convolution precedes the decoder.
        mid_block_add_attention: whether there is attention at the lowest resolution.
        force_upcast: whether float16 overflows in it; for the caller, too.
        gradient_checkpointing: what the backward pass recomputes, see `UNet2DConditionModel`.
        dtype: dtype of activations; statistics and softmax are always float32.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_DOWN_BLOCK_TYPE,)
    up_block_types: tuple[str, ...] = (_UP_BLOCK_TYPE,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    force_upcast: bool = True
    gradient_checkpointing: str = "none"
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32, gradient_checkpointing: str = "none"
    ) -> "AutoencoderKL":
        """Builds the model of a parsed diffusers config.json; missing settings have diffusers' defaults.

        Raises:
            InputError: a setting is not supported, or settings are inconsistent.
        """
        values = read_fields("AutoencoderKL config", AUTOENCODER_FIELDS, config)
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
                raise InputError(f"AutoencoderKL config: {name} has {entries} entries, block_out_channels has {levels}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise InputError(
                    f"AutoencoderKL config: block_out_channels has {channels}, which norm_num_groups = "
                    f"{self.norm_num_groups} must divide"
                )

    def setup(self) -> None:
        """Creates the sub-modules."""
        shared = (
            self.block_out_channels,
            self.layers_per_block,
            self.norm_num_groups,
            self.mid_block_add_attention,
            self.dtype,
            self.gradient_checkpointing,
        )
        self.encoder = Encoder(2 * self.latent_channels, *shared)
        self.decoder = Decoder(self.out_channels, *shared)
        if self.use_quant_conv:
            self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: jax.Array) -> jax.Array:
        """Returns the moments of the posterior over latents, for `mode`, `sample_posterior` and `kl_divergence`.

        Args:
            images: [B, H, W, in_channels] in [-1, 1], H and W multiples of f = 2 ** (len(block_out_channels) - 1).

        Returns:
            [B, H / f, W / f, 2 * latent_channels] of `dtype`: mean, then log-variance.
        """
        moments = self.encoder(images)
        return self.quant_conv(moments) if self.use_quant_conv else moments

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images from latents.

        Args:
            latents: [B, h, w, latent_channels], those of the UNet divided by `scaling_factor`.

        Returns:
            [B, f h, f w, out_channels] of `dtype`, roughly in [-1, 1], not clipped; f as in `encode`.
        """
        return self.decoder(self.post_quant_conv(latents) if self.use_post_quant_conv else latents)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the reconstruction of images [B, H, W, in_channels] from the posterior's mean."""
        return self.decode(mode(self.encode(images)))
