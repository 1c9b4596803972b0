"""Instance level of UtilGen (arXiv 2510.24262): a prompt, and then a starting noise, of each image's own."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.clip_similarity import clip_similarity
from utilgen_jax.generator.golden_noise import golden_noise
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.prompt_ascent import prompt_ascent_loss
from utilgen_jax.generator.utility import Utility


@dataclasses.dataclass(frozen=True)
class PerImageConfig:
    """How prompts and noises are found.

    Attributes:
        steps: of Adam on the prompts.
        learning_rate: likewise.
        sampler_steps: denoising steps to an image whose utility is looked at; fewer than the pool's save time.
        differentiable_steps: through how many of the last of them gradients flow.
        clip_weight: λ, how much nearness to the class's words in CLIP's space counts; nothing where a checkpoint cannot
            compare images with words.
        inversion_steps: how many of a sampler's steps, from the noise on, are taken there and back.
        denoising_guidance: of the way there; 0: that of the images.
        inversion_guidance: of the way back.
    """

    steps: int
    learning_rate: float
    sampler_steps: int
    differentiable_steps: int
    clip_weight: float
    inversion_steps: int
    denoising_guidance: float
    inversion_guidance: float


def optimize_prompts(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    utility: Utility,
    config: PerImageConfig,
    *,
    guidance_scale: float,
    scheduler: str,
) -> Adapter:
    """Moves each image's prompt to where its utility is larger; jittable.

    The text states are moved, by the same steps of Adam for each: what an image gains does not depend on its batch.

    Args:
        generator: the checkpoint's architecture.
        params: its weights.
        adapter: of what is adapted already; without prompt offsets.
        sample inputs: M images with a row each, and `clip_anchors` where CLIP's nearness counts.
        utility: of images, higher is better; differentiable.
        config: how.
        guidance_scale, scheduler: see `adapter.generate_images`.

    Returns:
        The adapter with `prompt_offsets` [M, T, D].
    """
    short_generate = partial(
        generate_images,
        generator,
        params,
        num_steps=config.sampler_steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        num_differentiable_steps=config.differentiable_steps,
    )
    no_words = sample_inputs.clip_anchors is None
    anchored = dataclasses.replace(sample_inputs, clip_anchors=jnp.zeros((1, 1))) if no_words else sample_inputs

    def similarity(images: jax.Array, anchors: jax.Array) -> jax.Array:
        return jnp.ones(len(images)) if no_words else clip_similarity(generator, params, images, anchors)

    def loss(offsets: jax.Array) -> jax.Array:
        return prompt_ascent_loss(
            offsets,
            adapter,
            anchored,
            generate_images=short_generate,
            utility=utility,
            similarity=similarity,
            clip_weight=config.clip_weight,
        )

    optimizer = optax.adam(config.learning_rate)

    def ascend(state: tuple[jax.Array, Any], _: Any) -> tuple[tuple[jax.Array, Any], None]:
        offsets, optimizer_state = state
        updates, optimizer_state = optimizer.update(jax.grad(loss)(offsets), optimizer_state)
        return (optax.apply_updates(offsets, updates), optimizer_state), None

    offsets = jnp.zeros(sample_inputs.condition.prompt_embeds.shape)
    (offsets, _), _ = jax.lax.scan(ascend, (offsets, optimizer.init(offsets)), None, config.steps)
    return dataclasses.replace(adapter, prompt_offsets=offsets)


def add_golden_noise(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    config: PerImageConfig,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Adapter:
    """Replaces each image's noise by one that hints at its prompt, see `objectives.golden_noise`; jittable.

    Args:
        generator, params, adapter, sample inputs, config: as in `optimize_prompts`.
        num_steps: DDIM steps between noise and image.
        guidance_scale: of the images.

    Returns:
        The adapter with `noise_offsets` [M, h, w, C].
    """
    noises = golden_noise(
        generator,
        params,
        adapter,
        sample_inputs,
        num_steps=num_steps,
        num_calls=config.inversion_steps,
        denoising_guidance=config.denoising_guidance or guidance_scale,
        inversion_guidance=config.inversion_guidance,
    )
    return dataclasses.replace(adapter, noise_offsets=noises - sample_inputs.latents)
