"""Better starting noise by a gap of guidance: a step with much of it, and back with little (Golden Noise; UtilGen)."""

from __future__ import annotations

import jax

from utilgen_jax.diffusion.samplers import invert, make_sampler, run_sampler
from utilgen_jax.generator.adapter import Policy, policy_denoiser, steer
from utilgen_jax.generator.inputs import Requests
from utilgen_jax.generator.loading import Generator, Params


def golden_noise(
    generator: Generator,
    params: Params,
    policy: Policy,
    requests: Requests,
    *,
    num_steps: int,
    num_calls: int,
    denoising_guidance: float,
    inversion_guidance: float,
) -> jax.Array:
    """ε' = DDIM⁻¹(DDIM(ε; strong guidance); weak guidance), of noise that already hints at the prompt.

    Zhou et al. 2024 (arXiv:2411.09502); UtilGen's instance level (arXiv:2510.24262). Golden Noise's public code takes
    one step of 50 there and back, with the guidance of the pictures themselves (5.5, for SDXL) and with 1. In a policy
    with a row a picture, `noise_offsets` = ε' - `requests.latents`.

    Args:
      generator: the checkpoint's architecture.
      params: its weights.
      policy: with the prompts to use, and the noise to start from.
      requests: M pictures, from noise.
      num_steps: DDIM steps between noise and picture; the fewer, the less exact is the inversion.
      num_calls: how many of them, from the noise on, are taken there and back.
      denoising_guidance: of the way there.
      inversion_guidance: of the way back.

    Returns:
      Float32 [M, h, w, C].
    """
    condition, noise = steer(policy, requests)
    sampler = make_sampler("ddim", generator.schedule, num_steps)
    denoising = policy_denoiser(generator, params, policy, condition, denoising_guidance)
    latents = run_sampler(denoising, sampler, noise, calls=slice(num_calls))
    inverting = policy_denoiser(generator, params, policy, condition, inversion_guidance)
    return invert(inverting, generator.schedule, latents, num_steps, num_calls)
