"""Euler's method on the probability flow ODE, and with fresh noise in each step (ancestral).

Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn; the ancestral form is k-diffusion's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, float32
from utilgen_jax.diffusion.samplers.sigmas import alphas_of, largest_sigma, spaced_sigmas, with_final
from utilgen_jax.diffusion.schedules import NoiseSchedule, clean_and_noise, inference_timesteps


@struct.dataclass(kw_only=True)
class SigmaSampler(Sampler):
    """Base class of samplers whose latents are x + σ ε.

    Attributes:
        sigmas: σ of the denoiser's inputs, float32 [S].
    """

    sigmas: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        if clean_latents is None:
            return SamplerState(noise * self.init_noise_sigma)
        return SamplerState(clean_latents + self.sigmas[0] * noise)

    def model_input(self, state: SamplerState, index: jax.Array | int) -> jax.Array:
        """See `Sampler.model_input`."""
        return state.latents * jnp.sqrt(self.alphas_cumprod[index])

    def clean(self, state: SamplerState, index: jax.Array | int, prediction: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the clean latents that a prediction implies, and the derivative dx/dσ, which is the noise."""
        noisy = self.model_input(state, index)
        return clean_and_noise(self.prediction_type, prediction, noisy, self.alphas_cumprod[index])


@struct.dataclass(kw_only=True)
class Euler(SigmaSampler):
    """Steps in σ.

    Attributes:
        next_sigmas: σ that each step goes to, float32 [S].
        stds: standard deviation of the noise that is then added, float32 [S].
    """

    next_sigmas: jax.Array
    stds: jax.Array

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        clean, direction = self.clean(state, index, prediction)
        latents = clean + self.next_sigmas[index] * direction
        return SamplerState(latents if noise is None else latents + self.stds[index] * noise)


def sigma_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns the timesteps of samplers in σ, float64 [S]: as `inference_timesteps`, but "linspace" is not rounded."""
    timesteps = inference_timesteps(schedule, num_steps).astype(np.float64)
    if schedule.settings["timestep_spacing"] == "linspace":
        return np.linspace(0, schedule.num_train_timesteps - 1, num_steps)[::-1]
    return timesteps


def make_euler(schedule: NoiseSchedule, num_steps: int, first: int) -> Euler:
    """See `make_sampler`."""
    return _make(schedule, num_steps, first, ancestral=False)


def make_euler_ancestral(schedule: NoiseSchedule, num_steps: int, first: int) -> Euler:
    """See `make_sampler`."""
    return _make(schedule, num_steps, first, ancestral=True)


def _make(schedule: NoiseSchedule, num_steps: int, first: int, ancestral: bool) -> Euler:
    timesteps, sigmas = spaced_sigmas(schedule, sigma_timesteps(schedule, num_steps))
    largest = largest_sigma(schedule, sigmas)
    sigmas = with_final(schedule, sigmas)[first:]
    before, after = sigmas[:-1], sigmas[1:]
    stds = np.sqrt(after**2 * (before**2 - after**2) / before**2) if ancestral else np.zeros_like(after)
    return Euler(
        timesteps=float32(timesteps[first:]),
        alphas_cumprod=float32(alphas_of(before)),
        sigmas=float32(before),
        next_sigmas=float32(np.sqrt(after**2 - stds**2)),
        stds=float32(stds),
        init_noise_sigma=float32(np.asarray(largest)),
        prediction_type=schedule.prediction_type,
        is_stochastic=ancestral,
    )
