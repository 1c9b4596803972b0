"""Better starting noise by a gap of guidance: a step with much of it, and back with little (Golden Noise; UtilGen)."""

from __future__ import annotations

import jax

from utilgen_jax.diffusion.samplers import invert, make_sampler, run_sampler
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, apply_adapter
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params


def golden_noise(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    *,
    num_steps: int,
    num_calls: int,
    denoising_guidance: float,
    inversion_guidance: float,
) -> jax.Array:
    """ε' = DDIM⁻¹(DDIM(ε; strong guidance); weak guidance), of noise that already hints at the prompt.

    Zhou et al. 2024 (arXiv:2411.09502); UtilGen's instance level (arXiv:2510.24262). Golden Noise's public code takes
    one step of 50 there and back, with the guidance of the images themselves (5.5, for SDXL) and with 1. In an adapter
    with a row an image, `noise_offsets` = ε' - `sample_inputs.latents`.

    Args:
        generator: the checkpoint's architecture.
        params: its weights.
        adapter: with the prompts to use, and the noise to start from.
        sample inputs: M images, from noise.
        num_steps: DDIM steps between noise and image; the fewer, the less exact is the inversion.
        num_calls: how many of them, from the noise on, are taken there and back.
        denoising_guidance: of the way there.
        inversion_guidance: of the way back.

    Returns:
        Float32 [M, h, w, C].
    """
    condition, noise = apply_adapter(adapter, sample_inputs)
    sampler = make_sampler("ddim", generator.schedule, num_steps)
    denoising = adapter_denoiser(generator, params, adapter, condition, denoising_guidance)
    latents = run_sampler(denoising, sampler, noise, calls=slice(num_calls))
    inverting = adapter_denoiser(generator, params, adapter, condition, inversion_guidance)
    return invert(inverting, generator.schedule, latents, num_steps, num_calls)
