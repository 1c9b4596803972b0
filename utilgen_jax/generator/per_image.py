"""Instance level of UtilGen (arXiv 2510.24262): a prompt, and then a starting noise, of each picture's own."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.generator.adapter import Policy, paint
from utilgen_jax.generator.clip_similarity import clip_similarity
from utilgen_jax.generator.golden_noise import golden_noise
from utilgen_jax.generator.inputs import Requests
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.prompt_ascent import prompt_ascent_loss
from utilgen_jax.generator.utility import Utility


@dataclasses.dataclass(frozen=True)
class InstanceRecipe:
    """How prompts and noises are found.

    Attributes:
      steps: of Adam on the prompts.
      learning_rate: likewise.
      sampler_steps: denoising steps to a picture whose utility is looked at; fewer than the pool's save time.
      differentiable_steps: through how many of the last of them gradients flow.
      clip_weight: λ, how much nearness to the class's words in CLIP's space counts; nothing where a checkpoint cannot
        compare pictures with words.
      inversion_steps: how many of a sampler's steps, from the noise on, are taken there and back.
      denoising_guidance: of the way there; 0: that of the pictures.
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


def with_own_prompts(
    generator: Generator,
    params: Params,
    policy: Policy,
    requests: Requests,
    utility: Utility,
    recipe: InstanceRecipe,
    *,
    guidance_scale: float,
    scheduler: str,
) -> Policy:
    """Moves each picture's prompt to where its utility is larger; jittable.

    The text states are moved, by the same steps of Adam for each: what a picture gains does not depend on its batch.

    Args:
      generator: the checkpoint's architecture.
      params: its weights.
      policy: of what is adapted already; without prompt offsets.
      requests: M pictures with a row each, and `clip_anchors` where CLIP's nearness counts.
      utility: of pictures, higher is better; differentiable.
      recipe: how.
      guidance_scale, scheduler: see `policy.paint`.

    Returns:
      The policy with `prompt_offsets` [M, T, D].
    """
    short_paint = partial(
        paint,
        generator,
        params,
        num_steps=recipe.sampler_steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        num_differentiable_steps=recipe.differentiable_steps,
    )
    no_words = requests.clip_anchors is None
    anchored = dataclasses.replace(requests, clip_anchors=jnp.zeros((1, 1))) if no_words else requests

    def similarity(images: jax.Array, anchors: jax.Array) -> jax.Array:
        return jnp.ones(len(images)) if no_words else clip_similarity(generator, params, images, anchors)

    def loss(offsets: jax.Array) -> jax.Array:
        return prompt_ascent_loss(
            offsets,
            policy,
            anchored,
            paint=short_paint,
            utility=utility,
            similarity=similarity,
            clip_weight=recipe.clip_weight,
        )

    optimizer = optax.adam(recipe.learning_rate)

    def ascend(state: tuple[jax.Array, Any], _: Any) -> tuple[tuple[jax.Array, Any], None]:
        offsets, optimizer_state = state
        updates, optimizer_state = optimizer.update(jax.grad(loss)(offsets), optimizer_state)
        return (optax.apply_updates(offsets, updates), optimizer_state), None

    offsets = jnp.zeros(requests.condition.prompt_embeds.shape)
    (offsets, _), _ = jax.lax.scan(ascend, (offsets, optimizer.init(offsets)), None, recipe.steps)
    return dataclasses.replace(policy, prompt_offsets=offsets)


def with_own_noises(
    generator: Generator,
    params: Params,
    policy: Policy,
    requests: Requests,
    recipe: InstanceRecipe,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Policy:
    """Replaces each picture's noise by one that hints at its prompt, see `objectives.golden_noise`; jittable.

    Args:
      generator, params, policy, requests, recipe: as in `with_own_prompts`.
      num_steps: DDIM steps between noise and picture.
      guidance_scale: of the pictures.

    Returns:
      The policy with `noise_offsets` [M, h, w, C].
    """
    noises = golden_noise(
        generator,
        params,
        policy,
        requests,
        num_steps=num_steps,
        num_calls=recipe.inversion_steps,
        denoising_guidance=recipe.denoising_guidance or guidance_scale,
        inversion_guidance=recipe.inversion_guidance,
    )
    return dataclasses.replace(policy, noise_offsets=noises - requests.latents)
