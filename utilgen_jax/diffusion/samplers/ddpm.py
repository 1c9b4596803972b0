"""DDPM's ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import GaussianSampler, SamplerState, clipping_range, float32
from utilgen_jax.diffusion.schedules import NoiseSchedule, alphas_at, clean_and_noise, inference_timesteps


@struct.dataclass(kw_only=True)
class DDPM(GaussianSampler):
    """The posterior q(x_s | x_t, x_0) of equations 6 and 7, where s is the next timestep.

    Attributes:
        clean_weights: weights of the predicted clean latents in the mean, float32 [S].
        latents_weights: weights of the noisy latents in the mean, float32 [S].
        stds: √β̃, float32 [S]; zero at the last step.
    """

    clean_weights: jax.Array
    latents_weights: jax.Array
    stds: jax.Array

    def transition(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `GaussianSampler.transition`."""
        clean, _ = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        mean = self.clean_weights[index] * self.clip(clean) + self.latents_weights[index] * state.latents
        return mean, self.stds[index]


def make_ddpm(schedule: NoiseSchedule, num_steps: int, first: int) -> DDPM:
    """See `make_sampler`."""
    timesteps = inference_timesteps(schedule, num_steps)[first:]
    alphas = alphas_at(schedule, timesteps)
    next_alphas = np.append(alphas[1:], 1.0)
    step_alphas = alphas / next_alphas
    return DDPM(
        timesteps=jnp.asarray(timesteps),
        alphas_cumprod=float32(alphas),
        clean_weights=float32(np.sqrt(next_alphas) * (1 - step_alphas) / (1 - alphas)),
        latents_weights=float32(np.sqrt(step_alphas) * (1 - next_alphas) / (1 - alphas)),
        stds=float32(np.sqrt((1 - next_alphas) / (1 - alphas) * (1 - step_alphas))),
        prediction_type=schedule.prediction_type,
        is_stochastic=True,
        clip_range=clipping_range(schedule),
    )
