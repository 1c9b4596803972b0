"""What all samplers have in common: tables of one entry per call of the denoiser, and the state between two calls."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import NoiseSchedule, diffuse
from utilgen_jax.errors import InputError


@struct.dataclass
class SamplerState:
    """What a sampler carries from one call of the denoiser to the next.

    Attributes:
        latents: float32 [B, h, w, C], in the sampler's own scale; clean after the last step.
        memory: what a multistep sampler remembers of earlier calls, float32 [B, h, w, C] each.
    """

    latents: jax.Array
    memory: tuple[jax.Array, ...] = ()


@struct.dataclass(kw_only=True)
class Sampler(abc.ABC):
    """Tables [S] for S calls of the denoiser, and what happens before and after each of them.

    Attributes:
        timesteps: what the denoiser is told, int32 [S], or float32 [S] where it may fall between two of training.
        alphas_cumprod: ᾱ of the latents that the denoiser sees, float32 [S].
        prediction_type: what the denoiser predicts: one of `schedules.PREDICTION_TYPES`.
        init_noise_sigma: standard deviation of the latents that generation starts from, float32 scalar.
        is_stochastic: `step` needs noise.
    """

    timesteps: jax.Array
    alphas_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False)
    init_noise_sigma: jax.Array | float = 1.0
    is_stochastic: bool = struct.field(pytree_node=False, default=False)

    @property
    def num_calls(self) -> int:
        """S, how often the denoiser is called."""
        return self.timesteps.shape[0]

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """The state before the first step.

        Args:
            noise: standard normal, float32 [B, h, w, C].
            clean_latents: of images to start from, float32 [B, h, w, C], noised to the level of the first step; None
                to start from noise alone.
        """
        if clean_latents is None:
            return SamplerState(noise * self.init_noise_sigma)
        return SamplerState(diffuse(clean_latents, noise, self.alphas_cumprod[0]))

    def model_input(self, state: SamplerState, index: jax.Array | int) -> jax.Array:
        """The latents that the denoiser sees at step `index`, of variance about one: float32 [B, h, w, C]."""
        del index
        return state.latents

    @abc.abstractmethod
    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """The state after the denoiser's call number `index`.

        Args:
            state: before it.
            index: int scalar, 0 .. S - 1.
            prediction: the denoiser's output for `model_input(state, index)`, float32 [B, h, w, C].
            noise: standard normal, float32 [B, h, w, C], where the sampler is stochastic.
        """


@struct.dataclass(kw_only=True)
class GaussianSampler(Sampler):
    """A sampler whose step draws the next latents from a normal distribution, or without noise takes its mean."""

    @abc.abstractmethod
    def transition(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean, float32 [B, h, w, C], and standard deviation, float32 scalar, of the latents after step `index`."""

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        mean, std = self.transition(state, index, prediction)
        return SamplerState(mean if noise is None else mean + std * noise)


def check_settings(schedule: NoiseSchedule, sampler: str, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises InputError where `scheduler_config.json` asks this sampler for something that it does not compute.

    Args:
        schedule: holds the file's settings.
        sampler: its name, for the message.
        supported: field -> the values that are computed. A field that is missing in the file passes.
    """
    for name, values in supported.items():
        if name in schedule.settings and schedule.settings[name] not in values:
            raise InputError(
                f"scheduler_config.json: {name}={schedule.settings[name]!r} is not supported by the sampler "
                f"{sampler!r}; only {' or '.join(map(repr, values))} is"
            )


def float32(table: np.ndarray) -> jax.Array:
    """A table that was computed in float64, as the samplers keep it."""
    return jnp.asarray(table, jnp.float32)
