"""UtilGen's instance level (arXiv 2510.24262): a prompt of each image's own, and then a starting noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.diffusion.samplers import invert, make_sampler, run_sampler
from utilgen_jax.generator.adapter import Adapter, GenerateImages, adapter_denoiser, apply_adapter, generate_images
from utilgen_jax.generator.config import PerImageConfig, SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.utility import Utility


def optimize_prompts(
    sd: StableDiffusion,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    objective: AnchoredUtility,
    config: PerImageConfig,
    sampling: SamplingConfig,
) -> Adapter:
    """Moves each image's prompt to where its utility is larger; jittable.

    All text states get the same number of Adam steps, and the result for an image does not depend on its batch.

    Args:
        sd: the checkpoint.
        adapter: without prompt offsets.
        sample_inputs: M images with a row each; with `clip_anchors` if the CLIP distance counts.
        objective: of images, higher is better; differentiable.
        config: steps and learning rate.
        sampling: of the images; `config.sampler_steps` replaces its steps.

    Returns:
        The adapter with `prompt_offsets` [M, T, D].
    """
    short = dataclasses.replace(sampling, steps=config.sampler_steps)

    def generate(adapter: Adapter, sample_inputs: SampleInputs) -> jax.Array:
        return generate_images(sd, adapter, sample_inputs, short, config.differentiable_steps)

    def loss(offsets: jax.Array) -> jax.Array:
        return prompt_ascent_loss(offsets, adapter, sample_inputs, generate, objective)

    optimizer = optax.adam(config.learning_rate)

    def ascend(state: tuple[jax.Array, Any], _: Any) -> tuple[tuple[jax.Array, Any], None]:
        offsets, optimizer_state = state
        updates, optimizer_state = optimizer.update(jax.grad(loss)(offsets), optimizer_state)
        return (optax.apply_updates(offsets, updates), optimizer_state), None

    offsets = jnp.zeros(sample_inputs.condition.prompt_embeds.shape)
    (offsets, _), _ = jax.lax.scan(ascend, (offsets, optimizer.init(offsets)), None, config.steps)
    return dataclasses.replace(adapter, prompt_offsets=offsets)


@dataclasses.dataclass(frozen=True)
class AnchoredUtility:
    """A utility and the CLIP distance that holds an image to its class: utility - λ (1 - cosine).

    Attributes:
        utility: of images, differentiable; in UtilGen the weight network's output for their loss.
        similarity: (images, anchors) -> cosine [M], `clip_similarity` with the tower given; None: it does not count.
        clip_weight: λ.
    """

    utility: Utility
    similarity: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    clip_weight: float = 0.5


def prompt_ascent_loss(
    prompt_offsets: jax.Array,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    generate: GenerateImages,
    objective: AnchoredUtility,
) -> jax.Array:
    """Minus the sum of the images' anchored utilities.

    It is a sum, not a mean: with a row of offsets for each image, every image is a problem of its own.

    Args:
        prompt_offsets: differentiated, float32 [N, T, D]; they replace the adapter's.
        adapter: its other parts.
        sample_inputs: M images, with `clip_anchors` where the CLIP distance counts.
        generate: `adapter.generate_images` with the other arguments given; UtilGen differentiates the last 1 to 5 steps
            [ours].
        objective: the anchored utility.

    Returns:
        Scalar.

    Raises:
        InputError: the CLIP distance counts, and the sample inputs have no anchors.
    """
    images = generate(dataclasses.replace(adapter, prompt_offsets=prompt_offsets), sample_inputs)
    utilities = objective.utility(images, sample_inputs.labels)
    if objective.similarity is None:
        return -jnp.sum(utilities)
    distances = 1.0 - objective.similarity(images, sample_inputs.anchors())
    return -jnp.sum(utilities - objective.clip_weight * distances)


def add_golden_noise(
    sd: StableDiffusion,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    config: PerImageConfig,
    sampling: SamplingConfig,
) -> Adapter:
    """Replaces each image's noise ε by one that hints at its prompt.

    ε' = DDIM⁻¹(DDIM(ε; strong guidance); weak guidance): Zhou et al. 2024 (arXiv 2411.09502). Their public code takes
    one step of 50 forth and back, with the guidance of the images themselves (5.5, for SDXL) and with 1. Jittable.

    Args:
        sd: the checkpoint.
        adapter: with the prompts and the noise to start from.
        sample_inputs: M images with a row each, from noise.
        config: `inversion_steps` DDIM steps, from the noise on, are taken forth and back with the two guidances.
        sampling: its steps are those between noise and image (the fewer, the less exact the inversion), its guidance
            that of the images.

    Returns:
        The adapter with `noise_offsets` [M, h, w, C] = ε' - `sample_inputs.latents`.
    """
    condition, noise = apply_adapter(adapter, sample_inputs)
    sampler = make_sampler("ddim", sd.schedule, sampling.steps)
    forth = adapter_denoiser(sd, adapter, condition, config.denoising_guidance or sampling.guidance_scale)
    latents = run_sampler(forth, sampler, noise, calls=slice(config.inversion_steps))
    back = adapter_denoiser(sd, adapter, condition, config.inversion_guidance)
    noises = invert(back, sd.schedule, latents, sampling.steps, config.inversion_steps)
    return dataclasses.replace(adapter, noise_offsets=noises - sample_inputs.latents)
