"""TAESD, a small autoencoder in place of Stable Diffusion's, as diffusers' torch AutoencoderTiny computes it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.json_fields import (
    OFF,
    POSITIVE,
    WITHOUT_EFFECT,
    Kind,
    either,
    list_of,
    only,
    read_fields,
    whole,
)

# The fields of `vae/config.json` of this class, see `json_fields`.
TINY_FIELDS: Mapping[str, Kind] = {
    "in_channels": whole(1),
    "out_channels": whole(1),
    "encoder_block_out_channels": list_of(whole(1)),
    "decoder_block_out_channels": list_of(whole(1)),
    "num_encoder_blocks": list_of(whole(0)),
    "num_decoder_blocks": list_of(whole(0)),
    "latent_channels": whole(1),
    "scaling_factor": POSITIVE,
    "act_fn": only("relu"),
    "upsample_fn": only("nearest"),
    "upsampling_scaling_factor": only(2),
    "shift_factor": either(OFF, only(0)),
    # that of the decoder again, and what pipelines of Stable Diffusion do not use
    "block_out_channels": WITHOUT_EFFECT,
    "latent_magnitude": WITHOUT_EFFECT,
    "latent_shift": WITHOUT_EFFECT,
    "force_upcast": WITHOUT_EFFECT,
}

_LOG_VARIANCE = -30.0  # the least that `autoencoder.sample_posterior` knows: the latents are not drawn
_LARGEST_LATENT = 3.0


class TinyBlock(nn.Module):
    """Three convolutions and a residual connection: [B, h, w, C] -> [B, h, w, C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Returns the block's output."""
        channels, residual = hidden_states.shape[-1], hidden_states
        for index in (0, 2, 4):  # torch's 1 and 3 are activations
            residual = nn.relu(residual) if index else residual
            residual = nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name=f"conv.{index}")(residual)
        return nn.relu(residual + hidden_states)


class TinyEncoder(nn.Module):
    """Images [B, H, W, C] in [-1, 1] to latents; for the attributes see `AutoencoderTiny`."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns latents [B, h, w, out_channels]."""
        hidden_states, index = (images + 1) / 2, 0
        for level, (channels, number) in enumerate(zip(self.block_out_channels, self.num_blocks, strict=True)):
            strides, has_bias = (2, False) if level else (1, True)
            settings: dict[str, Any] = {"strides": strides, "use_bias": has_bias, "padding": 1, "dtype": self.dtype}
            hidden_states = nn.Conv(channels, (3, 3), **settings, name=f"layers.{index}")(hidden_states)
            for place in range(index + 1, index + 1 + number):
                hidden_states = TinyBlock(self.dtype, name=f"layers.{place}")(hidden_states)
            index += 1 + number
        return nn.Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype, name=f"layers.{index}")(hidden_states)


class TinyDecoder(nn.Module):
    """Latents [B, h, w, c] to images; for the attributes see `AutoencoderTiny`."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns images [B, H, W, out_channels], roughly in [-1, 1]."""

        def conv(features: int, index: int, inputs: jax.Array, has_bias: bool = True) -> jax.Array:
            settings: dict[str, Any] = {"padding": 1, "use_bias": has_bias, "dtype": self.dtype}
            return nn.Conv(features, (3, 3), **settings, name=f"layers.{index}")(inputs)

        hidden_states = jnp.tanh(latents / _LARGEST_LATENT) * _LARGEST_LATENT
        hidden_states = nn.relu(conv(self.block_out_channels[0], 0, hidden_states))
        index, last = 2, len(self.num_blocks) - 1  # torch's 1 is an activation
        for level, (channels, number) in enumerate(zip(self.block_out_channels, self.num_blocks, strict=True)):
            for place in range(index, index + number):
                hidden_states = TinyBlock(self.dtype, name=f"layers.{place}")(hidden_states)
            index += number
            if level < last:
                hidden_states = hidden_states.repeat(2, axis=1).repeat(2, axis=2)
                index += 1
            features = self.out_channels if level == last else channels
            hidden_states = conv(features, index, hidden_states, has_bias=level == last)
            index += 1
        return 2 * hidden_states - 1


class AutoencoderTiny(nn.Module):
    """Encodes and decodes as `AutoencoderKL`, whose interface it has, with about a hundredth of its work.

    The attributes have the names, defaults and meaning of diffusers' config.json.

    Attributes:
        in_channels: channels of the images to encode.
        out_channels: channels of the decoded images.
        encoder_block_out_channels: channels at each resolution, the largest resolution first.
        decoder_block_out_channels: the same, the smallest resolution first.
        num_encoder_blocks: residual blocks at each resolution.
        num_decoder_blocks: the same.
        latent_channels: channels of the latents.
        scaling_factor: see `AutoencoderKL`.
        dtype: dtype of activations.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    scaling_factor: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: jnp.dtype = jnp.float32, gradient_checkpointing: str = "none"
    ) -> "AutoencoderTiny":
        """Builds the model of a parsed diffusers config.json; missing settings have diffusers' defaults.

        Nothing is computed again in its backward pass, whatever `gradient_checkpointing` says: it keeps little.

        Raises:
            InputError: a setting is not supported, or settings are inconsistent.
        """
        del gradient_checkpointing
        values = read_fields("AutoencoderTiny config", TINY_FIELDS, config)
        model = cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__}, dtype=dtype)
        for side in ("encoder", "decoder"):
            blocks, channels = getattr(model, f"num_{side}_blocks"), getattr(model, f"{side}_block_out_channels")
            if len(blocks) != len(channels) or len(channels) != len(model.block_out_channels):
                raise InputError(
                    f"AutoencoderTiny config: num_{side}_blocks and {side}_block_out_channels need as many entries as "
                    "encoder_block_out_channels"
                )
        return model

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Channels at each resolution, as `AutoencoderKL` calls them."""
        return self.encoder_block_out_channels

    def setup(self) -> None:
        """Creates the sub-modules."""
        self.encoder = TinyEncoder(
            self.latent_channels, self.encoder_block_out_channels, self.num_encoder_blocks, self.dtype
        )
        self.decoder = TinyDecoder(
            self.out_channels, self.decoder_block_out_channels, self.num_decoder_blocks, self.dtype
        )

    def encode(self, images: jax.Array) -> jax.Array:
        """Returns moments as `AutoencoderKL.encode`: the latents, and a variance of almost nothing."""
        latents = self.encoder(images.astype(self.dtype))
        return jnp.concatenate([latents, jnp.full_like(latents, _LOG_VARIANCE)], axis=-1)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images from latents, see `AutoencoderKL.decode`."""
        return self.decoder(latents.astype(self.dtype))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the reconstruction of images [B, H, W, in_channels]."""
        return self.decode(self.encode(images)[..., : self.latent_channels])
