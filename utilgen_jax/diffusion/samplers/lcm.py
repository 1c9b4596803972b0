"""Few-step sampling of consistency models (Luo et al. 2023, "Latent Consistency Models", arXiv:2310.04378)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import GaussianSampler, SamplerState, clipping_range, float32
from utilgen_jax.diffusion.schedules import NoiseSchedule, alphas_at, check_num_steps, clean_and_noise
from utilgen_jax.errors import InputError

_SIGMA_DATA = 0.5


@struct.dataclass(kw_only=True)
class LCM(GaussianSampler):
    """Algorithm 3: each call predicts clean latents, to which the noise of the next timestep is added.

    Attributes:
        next_alphas_cumprod: ᾱ of the latents after each step, float32 [S]; 1 after the last.
        skip_weights: c_skip of equation 9, weights of the noisy latents, float32 [S].
        clean_weights: c_out, weights of the predicted clean latents, float32 [S].
    """

    next_alphas_cumprod: jax.Array
    skip_weights: jax.Array
    clean_weights: jax.Array

    def transition(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `GaussianSampler.transition`."""
        clean, _ = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        denoised = self.clean_weights[index] * self.clip(clean) + self.skip_weights[index] * state.latents
        next_alpha = self.next_alphas_cumprod[index]
        return jnp.sqrt(next_alpha) * denoised, jnp.sqrt(1.0 - next_alpha)


def make_lcm(schedule: NoiseSchedule, num_steps: int, first: int) -> LCM:
    """See `make_sampler`; the timesteps are a subset of the `original_inference_steps` of the distillation."""
    original_steps = schedule.settings["original_inference_steps"]
    total = schedule.num_train_timesteps
    if original_steps > total:
        raise InputError(
            f"scheduler_config.json: original_inference_steps={original_steps} must be between 1 and {total}"
        )
    check_num_steps(num_steps, original_steps)
    distilled = np.arange(1, original_steps + 1) * (total // original_steps) - 1
    chosen = np.floor(np.linspace(0, original_steps, num_steps, endpoint=False)).astype(int)
    timesteps = distilled[::-1][chosen][first:].astype(np.int32)
    alphas = alphas_at(schedule, timesteps)
    scaled = timesteps * float(schedule.settings["timestep_scaling"])
    return LCM(
        timesteps=jnp.asarray(timesteps),
        alphas_cumprod=float32(alphas),
        next_alphas_cumprod=float32(np.append(alphas[1:], 1.0)),
        skip_weights=float32(_SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)),
        clean_weights=float32(scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)),
        prediction_type=schedule.prediction_type,
        is_stochastic=len(timesteps) > 1,
        clip_range=clipping_range(schedule),
    )
