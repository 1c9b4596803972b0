"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a predictor, and a corrector that needs no further denoiser call."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.dpm_solver import multistep_sigmas
from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState, float32
from utilgen_jax.diffusion.samplers.sigmas import alphas_of
from utilgen_jax.diffusion.scheduler_fields import WHERE
from utilgen_jax.diffusion.schedules import NoiseSchedule, clean_and_noise
from utilgen_jax.errors import InputError


@struct.dataclass(kw_only=True)
class UniPC(Sampler):
    """Each call first corrects the last step with its own prediction; the state has what that step started from.

    Every weight is of a row: the latents before the last step, the latents, this prediction of the clean latents, and
    earlier ones.

    Attributes:
        corrector: weights of the corrected latents, float32 [S, 3 + order].
        predictor: weights of the next latents, which has the corrected ones for latents: float32 [S, 3 + order].
    """

    corrector: jax.Array
    predictor: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        return SamplerState(latents, (jnp.zeros_like(latents),) * (self.corrector.shape[1] - 2))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        clean, _ = clean_and_noise(self.prediction_type, prediction, state.latents, self.alphas_cumprod[index])
        before, *earlier = state.memory

        def weighted(weights: jax.Array, latents: jax.Array) -> jax.Array:
            return jnp.tensordot(weights, jnp.stack([before, latents, clean, *earlier]), 1)

        corrected = weighted(self.corrector[index], state.latents)
        latents = weighted(self.predictor[index], corrected)
        return SamplerState(latents, (corrected, clean, *earlier[:-1]))


def make_unipc(schedule: NoiseSchedule, num_steps: int, first: int) -> UniPC:
    """See `make_sampler`."""
    settings = schedule.settings
    if settings["final_sigmas_type"] == "zero" and not settings["lower_order_final"]:
        raise InputError(
            f"{WHERE}: lower_order_final=False needs final_sigmas_type='sigma_min': the step to no noise is of order 1"
        )
    timesteps, sigmas = multistep_sigmas(schedule, num_steps)
    if settings["final_sigmas_type"] == "sigma_min" and settings["sigma_min"]:
        sigmas[-1] = sigmas[-2]
    alphas = alphas_of(sigmas)
    order = settings["solver_order"]

    def order_of(step: int) -> int:
        largest = min(order, num_steps - step) if settings["lower_order_final"] else order
        return min(largest, step - first + 1)

    correctors, predictors = np.zeros((2, num_steps - first, 3 + order))
    for row, step in enumerate(range(first, num_steps)):
        if row and step - 1 not in settings["disable_corrector"]:
            weights = _step_weights(settings["solver_type"], sigmas, step, order_of(step - 1), corrects=True)
            correctors[row, 0] = np.sqrt((1 - alphas[step]) / (1 - alphas[step - 1]))
            correctors[row, 2 : 2 + len(weights)] = np.sqrt(alphas[step]) * weights
        else:
            correctors[row, 1] = 1.0
        weights = _step_weights(settings["solver_type"], sigmas, step + 1, order_of(step), corrects=False)
        predictors[row, 1] = np.sqrt((1 - alphas[step + 1]) / (1 - alphas[step]))
        predictors[row, 2 : 2 + len(weights)] = np.sqrt(alphas[step + 1]) * weights
    return UniPC(
        timesteps=jnp.asarray(timesteps[first:]),
        alphas_cumprod=float32(alphas[:-1][first:]),
        corrector=float32(correctors),
        predictor=float32(predictors),
        prediction_type=schedule.prediction_type,
    )


def _step_weights(solver_type: str, sigmas: np.ndarray, end: int, order: int, corrects: bool) -> np.ndarray:
    """Weights of predictions of the clean latents in the step that ends at `sigmas[end]`, the newest first.

    The predictor knows those of the step's start and before, the corrector also that of its end.
    """
    with np.errstate(divide="ignore"):
        lambdas = -np.log(sigmas)
    h = lambdas[end] - lambdas[end - 1]
    phi = np.expm1(-h)
    scale = -h if solver_type == "bh1" else phi  # "B(h)" of the paper; of other types, diffusers takes "bh2"
    places = [(lambdas[end - 1 - k] - lambdas[end - 1]) / h for k in range(1, order)]
    weights = np.zeros(order + 1)  # of the prediction at the end, of that at the start, and of earlier ones
    weights[1] = -phi
    if corrects:
        places.append(1.0)
    coefficients = _solve(places, -h, scale)
    for number, (place, coefficient) in enumerate(zip(places, coefficients, strict=True)):
        weight = -scale * coefficient / place
        weights[0 if corrects and number == len(places) - 1 else 2 + number] += weight
        weights[1] -= weight
    return weights if corrects else weights[1:]


def _solve(places: list[float], h: float, scale: float) -> np.ndarray:
    """The coefficients ρ of equation 8 for differences at these places, in units of the step."""
    number = len(places)
    if number == 0:
        return np.zeros(0)
    if number == 1:
        return np.array([0.5])  # the simplified form of the lowest order
    phi, right = np.expm1(h) / h - 1, []
    for k in range(1, number + 1):
        right.append(phi * math.factorial(k) / scale)
        phi = phi / h - 1 / math.factorial(k + 1)
    return np.linalg.solve(np.vander(places, increasing=True).T, right)
