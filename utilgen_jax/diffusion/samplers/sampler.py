"""Base classes of samplers: tables with an entry per denoiser call, and the state between calls."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import NoiseSchedule, diffuse


@struct.dataclass
class SamplerState:
    """State of a sampler between denoiser calls.

    Attributes:
        latents: latents in the sampler's scale, float32 [B, h, w, C]; clean after the last step.
        memory: earlier results of a multistep sampler, float32 [B, h, w, C] each.
    """

    latents: jax.Array
    memory: tuple[jax.Array, ...] = ()


@struct.dataclass(kw_only=True)
class Sampler(abc.ABC):
    """A sampler with S denoiser calls.

    Attributes:
        timesteps: timesteps of the denoiser, int32 [S], or float32 [S] if they can be fractional.
        alphas_cumprod: ᾱ of the denoiser's inputs, float32 [S].
        prediction_type: output of the denoiser, one of `schedules.PREDICTION_TYPES`.
        init_noise_sigma: standard deviation of the initial latents, float32 scalar.
        is_stochastic: whether `step` needs noise.
        clip_range: largest absolute value of predicted clean latents, which are clipped to it; None without clipping.
    """

    timesteps: jax.Array
    alphas_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False)
    init_noise_sigma: jax.Array | float = 1.0
    is_stochastic: bool = struct.field(pytree_node=False, default=False)
    clip_range: float | None = struct.field(pytree_node=False, default=None)

    @property
    def num_calls(self) -> int:
        """Number of denoiser calls, S."""
        return self.timesteps.shape[0]

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """Returns the state before the first step.

        Args:
            noise: standard normal noise, float32 [B, h, w, C].
            clean_latents: latents of initial images, float32 [B, h, w, C], to diffuse to the first step; None to start
                from pure noise.
        """
        if clean_latents is None:
            return SamplerState(noise * self.init_noise_sigma)
        return SamplerState(diffuse(clean_latents, noise, self.alphas_cumprod[0]))

    def model_input(self, state: SamplerState, index: jax.Array | int) -> jax.Array:
        """Returns the denoiser's input at step `index`, of variance about one: float32 [B, h, w, C]."""
        del index
        return state.latents

    def clip(self, clean: jax.Array) -> jax.Array:
        """Returns predicted clean latents, clipped if the sampler does so."""
        return clean if self.clip_range is None else jnp.clip(clean, -self.clip_range, self.clip_range)

    @abc.abstractmethod
    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """Returns the state after step `index`.

        Args:
            state: state before the step.
            index: int scalar in 0 .. S - 1.
            prediction: the denoiser's output for `model_input(state, index)`, float32 [B, h, w, C].
            noise: standard normal noise, float32 [B, h, w, C], for a stochastic sampler.
        """


@struct.dataclass(kw_only=True)
class GaussianSampler(Sampler):
    """A sampler that draws the next latents from a normal distribution, or returns its mean without noise."""

    @abc.abstractmethod
    def transition(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns mean, float32 [B, h, w, C], and standard deviation, scalar, of the latents after step `index`."""

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        mean, std = self.transition(state, index, prediction)
        return SamplerState(mean if noise is None else mean + std * noise)


def clipping_range(schedule: NoiseSchedule) -> float | None:
    """Returns the range of clean latents in the settings `clip_sample` and `clip_sample_range`; None without."""
    return float(schedule.settings["clip_sample_range"]) if schedule.settings["clip_sample"] else None


def float32(table: np.ndarray) -> jax.Array:
    """Converts a float64 table to float32."""
    return jnp.asarray(table, jnp.float32)
