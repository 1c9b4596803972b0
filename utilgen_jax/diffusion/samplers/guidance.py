"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (latents [B, h, w, C], timestep: scalar, int32 or float32) -> the model's output [B, h, w, C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def guided(
    apply_unet: Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array],
    prompt_embeds: jax.Array,
    negative_prompt_embeds: jax.Array,
    class_labels: jax.Array | None,
    guidance_scale: float,
) -> Denoiser:
    """Makes a denoiser with classifier-free guidance (Ho & Salimans 2022), with both branches in a batch of 2B.

    Args:
        apply_unet: (latents [N, h, w, C], timesteps [N], encoder_hidden_states [N, T, D], class_labels [N, E] or None)
            -> [N, h, w, C].
        prompt_embeds: prompt embeddings of the conditional branch, float [B, T, D].
        negative_prompt_embeds: prompt embeddings of the unconditional branch, float [B, T, D].
        class_labels: unCLIP image embeddings with noise levels, float [B, E], or None; zero in the unconditional
            branch.
        guidance_scale: guidance scale; without guidance (1 or less) only the conditional branch is computed.

    Returns:
        A denoiser for `run_sampler`.
    """

    def unguided(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.broadcast_to(timestep, latents.shape[:1])
        return apply_unet(latents, timesteps, prompt_embeds, class_labels)

    def denoise(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.broadcast_to(timestep, (2 * latents.shape[0],))
        embeds = jnp.concatenate([negative_prompt_embeds, prompt_embeds])
        labels = None if class_labels is None else jnp.concatenate([jnp.zeros_like(class_labels), class_labels])
        both = apply_unet(jnp.concatenate([latents, latents]), timesteps, embeds, labels)
        unconditional, conditional = jnp.split(both, 2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return unguided if guidance_scale <= 1.0 else denoise
