"""PNDM in its PLMS form (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", arXiv:2202.09778)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, float32
from utilgen_jax.diffusion.schedules import NoiseSchedule, alphas_at, clean_and_noise, diffuse, inference_timesteps

# Adams-Bashforth weights of the predictions of this call and up to three earlier ones (equation 12). The second call
# repeats the first step with the mean of both predictions, a Heun step in place of Runge-Kutta.
_WEIGHTS = np.array(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


@struct.dataclass(kw_only=True)
class PNDM(Sampler):
    """Linear multistep method; the state has three earlier predictions and the latents of the first call.

    Attributes:
        step_alphas_cumprod: ᾱ at the start of each step, float32 [S]; differs from the denoiser's in the second call.
        next_alphas_cumprod: ᾱ of the latents after each step, float32 [S].
        weights: weights of the current and three earlier predictions, float32 [S, 4].
    """

    step_alphas_cumprod: jax.Array
    next_alphas_cumprod: jax.Array
    weights: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        empty = jnp.zeros_like(latents)
        return SamplerState(latents, (empty, empty, empty, latents))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        *earlier, first_latents = state.memory
        weighted = [weight * one for weight, one in zip(self.weights[index], [prediction, *earlier], strict=True)]
        second = index == 1
        latents = jnp.where(second, first_latents, state.latents)
        clean, direction = clean_and_noise(
            self.prediction_type, sum(weighted), latents, self.step_alphas_cumprod[index]
        )
        # The second call's prediction is used only in the repeated step.
        newest = [jnp.where(second, old, new) for old, new in zip(earlier, [prediction, *earlier[:2]], strict=True)]
        latents = diffuse(clean, direction, self.next_alphas_cumprod[index])
        return SamplerState(latents, (*newest, first_latents))


def make_pndm(schedule: NoiseSchedule, num_steps: int, first: int) -> PNDM:
    """See `make_sampler`; the number of denoiser calls is the number of steps plus one."""
    timesteps = inference_timesteps(schedule, num_steps)
    stride = schedule.num_train_timesteps // num_steps
    timesteps = np.concatenate([timesteps[:2], timesteps[1:]])[first:]
    starts, ends = timesteps.copy(), timesteps - stride
    starts[1:2], ends[1:2] = timesteps[1:2] + stride, timesteps[1:2]
    return PNDM(
        timesteps=jnp.asarray(timesteps),
        alphas_cumprod=float32(alphas_at(schedule, timesteps)),
        step_alphas_cumprod=float32(alphas_at(schedule, starts)),
        next_alphas_cumprod=float32(alphas_at(schedule, ends)),
        weights=float32(_WEIGHTS[np.minimum(np.arange(len(timesteps)), 4)]),
        prediction_type=schedule.prediction_type,
    )
