"""DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models", arXiv:2010.02502) and its inversion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import GaussianSampler, SamplerState, clipping_range, float32
from utilgen_jax.diffusion.schedules import NoiseSchedule, alphas_at, clean_and_noise, inference_timesteps, read_by
from utilgen_jax.errors import InputError


@struct.dataclass(kw_only=True)
class DDIM(GaussianSampler):
    """Equation 12, in both directions.

    Attributes:
        next_alphas_cumprod: ᾱ of the latents after each step, float32 [S].
        stds: σ of equation 16, float32 [S]; zero for η = 0.
    """

    next_alphas_cumprod: jax.Array
    stds: jax.Array

    def transition(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `GaussianSampler.transition`."""
        clean, noise = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        next_alpha, std = self.next_alphas_cumprod[index], self.stds[index]
        return jnp.sqrt(next_alpha) * self.clip(clean) + jnp.sqrt(1.0 - next_alpha - std**2) * noise, std


def make_ddim(schedule: NoiseSchedule, num_steps: int, first: int, eta: float = 0.0) -> DDIM:
    """See `make_sampler`; η = 0 is deterministic, η = 1 has the variance of DDPM."""
    timesteps = inference_timesteps(schedule, num_steps)[first:]
    # As in diffusers, the previous timestep has a fixed distance for all spacings.
    previous = timesteps - schedule.num_train_timesteps // num_steps
    alphas, next_alphas = alphas_at(schedule, timesteps), alphas_at(schedule, previous)
    variances = (1 - next_alphas) / (1 - alphas) * (1 - alphas / next_alphas)
    return DDIM(
        timesteps=jnp.asarray(timesteps),
        alphas_cumprod=float32(alphas),
        next_alphas_cumprod=float32(next_alphas),
        stds=float32(eta * np.sqrt(variances)),
        prediction_type=schedule.prediction_type,
        clip_range=clipping_range(schedule),
        is_stochastic=eta > 0,
    )


def make_ddim_inversion(schedule: NoiseSchedule, num_steps: int) -> DDIM:
    """Makes the inverse sampler, from clean latents to noise: the steps of `make_ddim` in reverse order.

    Each step uses the prediction at its noisier end.

    Raises:
        InputError: the number of steps is invalid, or the schedule does not support inversion.
    """
    schedule = read_by(schedule, "DDIMScheduler")
    timesteps = inference_timesteps(schedule, num_steps)[::-1]
    alphas = alphas_at(schedule, timesteps - schedule.num_train_timesteps // num_steps)
    if schedule.prediction_type == "sample" and alphas[0] == 1.0:
        raise InputError(
            "scheduler_config.json: set_alpha_to_one=True leaves no noise in clean latents, and "
            "prediction_type='sample' implies none; inversion needs set_alpha_to_one=False"
        )
    return DDIM(
        timesteps=jnp.asarray(timesteps),
        alphas_cumprod=float32(alphas),
        next_alphas_cumprod=float32(alphas_at(schedule, timesteps)),
        stds=jnp.zeros(num_steps),
        prediction_type=schedule.prediction_type,
        clip_range=clipping_range(schedule),
    )
