"""Euler's method on the probability flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, check_settings, float32
from utilgen_jax.diffusion.samplers.sigmas import SUPPORTED_SIGMAS, alphas_of, sigmas_at
from utilgen_jax.diffusion.schedules import NoiseSchedule, clean_and_noise, inference_timesteps

_SUPPORTED = SUPPORTED_SIGMAS | {"interpolation_type": ("linear",), "timestep_type": ("discrete",)}


@struct.dataclass(kw_only=True)
class Euler(Sampler):
    """Steps in σ; the latents are x + σ ε.

    Attributes:
        sigmas: σ of the latents before each step, float32 [S].
        next_sigmas: σ of the latents after each step, float32 [S].
    """

    sigmas: jax.Array
    next_sigmas: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        if clean_latents is None:
            return SamplerState(noise * self.init_noise_sigma)
        return SamplerState(clean_latents + self.sigmas[0] * noise)

    def model_input(self, state: SamplerState, index: jax.Array | int) -> jax.Array:
        """See `Sampler.model_input`."""
        return state.latents * jnp.sqrt(self.alphas_cumprod[index])

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        noisy = self.model_input(state, index)
        # The derivative dx/dσ is the predicted noise.
        clean, direction = clean_and_noise(self.prediction_type, prediction, noisy, self.alphas_cumprod[index])
        return SamplerState(clean + self.next_sigmas[index] * direction)


def make_euler(schedule: NoiseSchedule, num_steps: int, first: int) -> Euler:
    """See `make_sampler`."""
    check_settings(schedule, "euler", _SUPPORTED)
    timesteps = inference_timesteps(schedule, num_steps, "linspace").astype(np.float64)
    spacing = schedule.settings.get("timestep_spacing", "linspace")
    if spacing == "linspace":  # diffusers does not round these
        timesteps = np.linspace(0, schedule.num_train_timesteps - 1, num_steps)[::-1]
    sigmas = sigmas_at(schedule, timesteps)
    largest = np.sqrt(sigmas[0] ** 2 + 1) if spacing == "leading" else sigmas[0]
    sigmas = sigmas[first:]
    return Euler(
        timesteps=float32(timesteps[first:]),
        alphas_cumprod=float32(alphas_of(sigmas[:-1])),
        sigmas=float32(sigmas[:-1]),
        next_sigmas=float32(sigmas[1:]),
        init_noise_sigma=float32(largest),
        prediction_type=schedule.prediction_type,
    )
