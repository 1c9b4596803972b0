"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), the second-order multistep solver "2M"."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, check_settings, float32
from utilgen_jax.diffusion.samplers.sigmas import SUPPORTED_SIGMAS, alphas_of, sigmas_at
from utilgen_jax.diffusion.schedules import NoiseSchedule, check_num_steps, clean_and_noise, inference_timesteps

_SUPPORTED = SUPPORTED_SIGMAS | {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint", "heun"),
    "thresholding": (False,),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "lambda_min_clipped": (-np.inf,),
}


@struct.dataclass(kw_only=True)
class DPMSolver(Sampler):
    """Algorithm 2 of the paper; the state has the previous prediction of the clean latents.

    Attributes:
        latents_weights: weights of the latents before a step, float32 [S].
        clean_weights: weights of the predicted clean latents, float32 [S].
        change_weights: weights of the change of the prediction, float32 [S]; zero for first-order steps.
    """

    latents_weights: jax.Array
    clean_weights: jax.Array
    change_weights: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        return SamplerState(latents, (jnp.zeros_like(latents),))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        clean, _ = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        latents = (
            self.latents_weights[index] * state.latents
            + self.clean_weights[index] * clean
            + self.change_weights[index] * (clean - state.memory[0])
        )
        return SamplerState(latents, (clean,))


def make_dpm_solver(schedule: NoiseSchedule, num_steps: int, first: int) -> DPMSolver:
    """See `make_sampler`."""
    check_settings(schedule, "dpmsolver++", _SUPPORTED)
    settings = schedule.settings
    check_num_steps(num_steps, schedule.num_train_timesteps - 1)
    if settings.get("timestep_spacing", "linspace") == "trailing":
        timesteps = inference_timesteps(schedule, num_steps)
    else:  # one more, where the last step ends
        timesteps = inference_timesteps(schedule, num_steps + 1, "linspace")[:-1]
    sigmas = sigmas_at(schedule, timesteps)

    # λ = log(√ᾱ / √(1-ᾱ)) = -log σ as in the paper, and h is its increase in a step, which is infinite if σ ends at 0.
    # NaNs occur only in first-order steps, which do not use them.
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(-np.log(sigmas))
        previous_h = np.append(np.inf, h[:-1])
        signals = np.sqrt(alphas_of(sigmas[1:]))
        clean_weights = -signals * np.expm1(-h)
        if settings.get("solver_type", "midpoint") == "midpoint":
            change_weights = 0.5 * clean_weights * h / previous_h
        else:  # "heun"; h is 0 in a last step with constant σ
            change_weights = signals * (np.expm1(-h) / np.maximum(h, 1e-12) + 1) * h / previous_h
    first_order = np.zeros(num_steps, bool)
    first_order[first] = True
    few = settings.get("lower_order_final", True) and num_steps < 15
    if few or settings.get("euler_at_final", False) or settings.get("final_sigmas_type", "zero") == "zero":
        first_order[-1] = True

    kept = slice(first, None)
    alphas = alphas_of(sigmas)
    return DPMSolver(
        timesteps=jnp.asarray(timesteps[kept]),
        alphas_cumprod=float32(alphas[:-1][kept]),
        latents_weights=float32(np.sqrt((1 - alphas[1:]) / (1 - alphas[:-1]))[kept]),
        clean_weights=float32(clean_weights[kept]),
        change_weights=float32(np.where(first_order, 0.0, change_weights)[kept]),
        prediction_type=schedule.prediction_type,
    )
