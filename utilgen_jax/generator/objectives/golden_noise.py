"""Better starting noise by a gap of guidance: denoise with much of it, invert with little (Golden Noise; UtilGen)."""

from __future__ import annotations

import jax

from utilgen_jax.diffusion.samplers import invert, make_sampler, run_sampler
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.policy import Policy, policy_denoiser, steer
from utilgen_jax.generator.requests import Requests


def golden_noise(
    generator: Generator,
    params: Params,
    policy: Policy,
    requests: Requests,
    *,
    num_steps: int,
    denoising_guidance: float = 5.5,
    inversion_guidance: float = 1.0,
) -> jax.Array:
    """ε' = DDIM⁻¹(DDIM(ε; strong guidance); weak guidance), of noise that already hints at the prompt.

    Zhou et al. 2024 (arXiv:2411.09502), whose public code has 5.5 and 1.0; UtilGen's instance level (arXiv:2510.24262).
    In a policy with a row a picture, `noise_offsets` = ε' - `requests.latents`.

    Args:
      generator: the checkpoint's architecture.
      params: its weights.
      policy: with the prompts to use, and the noise to start from.
      requests: M pictures, from noise.
      num_steps: DDIM steps each way; the fewer, the less exact is the inversion.
      denoising_guidance: of the way to the picture.
      inversion_guidance: of the way back.

    Returns:
      Float32 [M, h, w, C].
    """
    condition, noise = steer(policy, requests)
    sampler = make_sampler("ddim", generator.schedule, num_steps)
    latents = run_sampler(policy_denoiser(generator, params, policy, condition, denoising_guidance), sampler, noise)
    inverting = policy_denoiser(generator, params, policy, condition, inversion_guidance)
    return invert(inverting, generator.schedule, latents, num_steps)
