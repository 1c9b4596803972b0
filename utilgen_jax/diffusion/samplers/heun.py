"""Heun's method on the probability flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.euler import SigmaSampler, sigma_timesteps
from utilgen_jax.diffusion.samplers.sampler import SamplerState, clipping_range, float32
from utilgen_jax.diffusion.samplers.sigmas import alphas_of, largest_sigma, spaced_sigmas
from utilgen_jax.diffusion.schedules import NoiseSchedule


@struct.dataclass(kw_only=True)
class Heun(SigmaSampler):
    """Two calls a step but the last: at its start, and where Euler's step would end; the state has the first's.

    Attributes:
        changes: change of σ in the step of each call, float32 [S].
        is_second: whether a call is the second of its step, bool [S].
    """

    changes: jax.Array
    is_second: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        return SamplerState(latents, (latents, jnp.zeros_like(latents)))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        start, earlier = state.memory
        clean, derivative = self.clean(state, index, prediction)
        if self.clip_range is not None:
            derivative = (state.latents - self.clip(clean)) / self.sigmas[index]
        second = self.is_second[index]
        start = jnp.where(second, start, state.latents)
        slope = jnp.where(second, (earlier + derivative) / 2, derivative)
        return SamplerState(start + self.changes[index] * slope, (start, derivative))


def make_heun(schedule: NoiseSchedule, num_steps: int, first: int) -> Heun:
    """See `make_sampler`; the number of denoiser calls is twice the number of steps, less one."""
    timesteps, sigmas = spaced_sigmas(schedule, sigma_timesteps(schedule, num_steps))
    largest = largest_sigma(schedule, sigmas)
    timesteps, sigmas = timesteps[first:], sigmas[first:]
    calls = np.repeat(np.arange(len(sigmas)), 2)[1:]  # the first call at a noise level ends the step before
    is_second = np.arange(len(calls)) % 2 == 1
    changes = np.diff(np.append(sigmas, 0.0))[np.where(is_second, calls - 1, calls)]
    return Heun(
        timesteps=float32(timesteps[calls]),
        alphas_cumprod=float32(alphas_of(sigmas[calls])),
        sigmas=float32(sigmas[calls]),
        changes=float32(changes),
        is_second=jnp.asarray(is_second),
        init_noise_sigma=float32(np.asarray(largest)),
        prediction_type=schedule.prediction_type,
        clip_range=clipping_range(schedule),
    )
