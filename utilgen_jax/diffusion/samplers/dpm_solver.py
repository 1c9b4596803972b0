"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): its multistep solvers "2M" and "3M", and their SDE forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, float32
from utilgen_jax.diffusion.samplers.sigmas import alphas_of, spaced_sigmas, with_final
from utilgen_jax.diffusion.schedules import NoiseSchedule, check_num_steps, clean_and_noise, inference_timesteps

_FEW_STEPS = 15  # below, `lower_order_final` makes a difference


@struct.dataclass(kw_only=True)
class DPMSolver(Sampler):
    """Algorithm 2 of the paper; the state has previous predictions of the clean latents.

    Attributes:
        latents_weights: weights of the latents before a step, float32 [S].
        clean_weights: weights of this and earlier predictions of the clean latents, float32 [S, order].
        stds: standard deviation of the noise that is added, float32 [S].
    """

    latents_weights: jax.Array
    clean_weights: jax.Array
    stds: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        return SamplerState(latents, (jnp.zeros_like(latents),) * (self.clean_weights.shape[1] - 1))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        clean, _ = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        predictions = (clean, *state.memory)
        latents = self.latents_weights[index] * state.latents
        latents += sum(weight * one for weight, one in zip(self.clean_weights[index], predictions, strict=True))
        if noise is not None:
            latents += self.stds[index] * noise
        return SamplerState(latents, predictions[: len(state.memory)])


def make_dpm_solver(schedule: NoiseSchedule, num_steps: int, first: int) -> DPMSolver:
    """See `make_sampler`."""
    settings = schedule.settings
    timesteps, sigmas = multistep_sigmas(schedule, num_steps)
    is_stochastic = settings["algorithm_type"] == "sde-dpmsolver++"
    alphas = alphas_of(sigmas)
    # λ = log(√ᾱ / √(1-ᾱ)) = -log σ as in the paper, and h is its increase in a step, which is infinite if σ ends at 0.
    with np.errstate(divide="ignore"):
        h = np.diff(-np.log(sigmas))
    latents_weights = np.sqrt((1 - alphas[1:]) / (1 - alphas[:-1])) * (np.exp(-h) if is_stochastic else 1.0)
    stds = np.sqrt(1 - alphas[1:]) * np.sqrt(-np.expm1(-2 * h)) * is_stochastic
    clean_weights = np.stack(
        [
            np.sqrt(alphas[step + 1]) * _clean_weights(settings, h, step, _order(settings, num_steps, first, step))
            for step in range(first, num_steps)
        ]
    )
    kept = slice(first, None)
    return DPMSolver(
        timesteps=jnp.asarray(timesteps[kept]),
        alphas_cumprod=float32(alphas[:-1][kept]),
        latents_weights=float32(latents_weights[kept]),
        clean_weights=float32(clean_weights),
        stds=float32(stds[kept]),
        prediction_type=schedule.prediction_type,
        is_stochastic=is_stochastic,
    )


def multistep_sigmas(schedule: NoiseSchedule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns timesteps int32 [S] and σ float64 [S + 1] of diffusers' multistep solvers."""
    check_num_steps(num_steps, schedule.num_train_timesteps - 1)
    if schedule.settings["timestep_spacing"] == "trailing":
        timesteps = inference_timesteps(schedule, num_steps)
    else:  # one more, where the last step ends
        timesteps = inference_timesteps(schedule, num_steps + 1)[:-1]
    spaced, sigmas = spaced_sigmas(schedule, timesteps, over_all=True)
    return spaced.round().astype(np.int32), with_final(schedule, sigmas)


def _order(settings: Mapping[str, Any], num_steps: int, first: int, step: int) -> int:
    """The order of a step: lower at the start, for want of earlier predictions, and often at the end."""
    few = settings["lower_order_final"] and num_steps < _FEW_STEPS
    ends_low = few or settings["euler_at_final"] or settings["final_sigmas_type"] == "zero"
    order = min(settings["solver_order"], step - first + 1)
    if step == num_steps - 1 and ends_low:
        return 1
    return min(order, 2) if step == num_steps - 2 and few else order


def _clean_weights(settings: Mapping[str, Any], h: np.ndarray, step: int, order: int) -> np.ndarray:
    """Weights of this and earlier predictions in a step, of √ᾱ after it: float64 [solver_order]."""
    is_stochastic = settings["algorithm_type"] == "sde-dpmsolver++"
    k = h[step] * (2 if is_stochastic else 1)
    first = -np.expm1(-k)
    weights = np.zeros(settings["solver_order"])
    weights[0] = first
    if order == 1:
        return weights
    k = max(k, 1e-12)  # 0 in a last step with constant σ, whose weights below are 0
    ratio = h[step] / h[step - 1]
    difference = np.zeros(len(weights))
    difference[:2] = ratio, -ratio  # D1 of the paper
    if order == 2:
        # Of the published solver types of others, diffusers takes "midpoint".
        return weights + (1 - first / k if settings["solver_type"] == "heun" else 0.5 * first) * difference
    earlier = h[step] / h[step - 2] * np.array([0.0, 1.0, -1.0])
    both = h[step - 1] + h[step - 2]
    change = difference - earlier
    slope = difference + h[step - 1] / both * change
    curvature = h[step] / both * change
    # The sign of 1/2 in diffusers' SDE form of the third order is not the ODE's.
    return weights + (1 - first / k) * slope + ((first - k) / k**2 + (-0.5 if is_stochastic else 0.5)) * curvature
