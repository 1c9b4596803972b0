"""Linear multistep method on the probability flow ODE (Adams-Bashforth on uneven steps in σ, as in k-diffusion)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.samplers.euler import SigmaSampler, sigma_timesteps
from utilgen_jax.diffusion.samplers.sampler import SamplerState, float32
from utilgen_jax.diffusion.samplers.sigmas import alphas_of, largest_sigma, spaced_sigmas
from utilgen_jax.diffusion.schedules import NoiseSchedule

_ORDER = 4


@struct.dataclass(kw_only=True)
class LMS(SigmaSampler):
    """The state has three earlier derivatives.

    Attributes:
        weights: weights of this derivative and three earlier ones, float32 [S, 4].
    """

    weights: jax.Array

    def start(self, noise: jax.Array, clean_latents: jax.Array | None = None) -> SamplerState:
        """See `Sampler.start`."""
        latents = super().start(noise, clean_latents).latents
        return SamplerState(latents, (jnp.zeros_like(latents),) * (_ORDER - 1))

    def step(
        self, state: SamplerState, index: jax.Array | int, prediction: jax.Array, noise: jax.Array | None = None
    ) -> SamplerState:
        """See `Sampler.step`."""
        derivatives = (self.clean(state, index, prediction)[1], *state.memory)
        change = sum(weight * one for weight, one in zip(self.weights[index], derivatives, strict=True))
        return SamplerState(state.latents + change, derivatives[:-1])


def make_lms(schedule: NoiseSchedule, num_steps: int, first: int) -> LMS:
    """See `make_sampler`."""
    timesteps, sigmas = spaced_sigmas(schedule, sigma_timesteps(schedule, num_steps))
    largest = largest_sigma(schedule, sigmas)
    return LMS(
        timesteps=float32(timesteps[first:]),
        alphas_cumprod=float32(alphas_of(sigmas[first:])),
        sigmas=float32(sigmas[first:]),
        weights=float32(np.stack([_weights(np.append(sigmas, 0.0), step) for step in range(first, num_steps)])),
        init_noise_sigma=float32(np.asarray(largest)),
        prediction_type=schedule.prediction_type,
    )


def _weights(sigmas: np.ndarray, step: int) -> np.ndarray:
    """Integrals over a step of the Lagrange polynomials through its σ and up to three earlier ones, float64 [4].

    As in diffusers, a start from an image counts the steps that were left out; their derivatives are zero here.
    """
    nodes = sigmas[step::-1][:_ORDER]
    weights = np.zeros(_ORDER)
    for number, node in enumerate(nodes):
        others = np.delete(nodes, number)
        # In units of the step and from its start, as the powers of large σ would cancel.
        length = sigmas[step + 1] - sigmas[step]
        polynomial = np.poly1d((others - sigmas[step]) / length, r=True)
        integral = polynomial.integ()(1.0) * length
        weights[number] = integral * length ** len(others) / np.prod(node - others)
    return weights
