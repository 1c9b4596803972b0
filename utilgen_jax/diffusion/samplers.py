"""Samplers: from noise to clean latents by repeated calls of the denoiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.schedules import NoiseSchedule, clean_and_noise, inference_timesteps, signal_and_noise

# (latents [B, h, w, C], timestep: int32 scalar) -> the model's output [B, h, w, C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def ddim_sample(denoise: Denoiser, schedule: NoiseSchedule, latents: jax.Array, num_steps: int) -> jax.Array:
    """Deterministic DDIM (Song et al. 2021, eq. 12, η = 0), as one `lax.scan`.

    Args:
      denoise: the conditioned (and guided) denoiser; its output is of the schedule's prediction type.
      schedule: the noise schedule.
      latents: standard normal noise, float32 [B, h, w, C].
      num_steps: denoiser calls.

    Returns:
      Clean latents, float32 [B, h, w, C], still multiplied by the autoencoder's scaling factor.
    """
    timesteps = inference_timesteps(schedule, num_steps)
    # As in diffusers, "the step before" is a fixed stride away, whatever the spacing.
    previous = timesteps - schedule.num_train_timesteps // num_steps
    alphas = schedule.alphas_cumprod[timesteps]
    previous_alphas = jnp.where(
        previous >= 0, schedule.alphas_cumprod[np.maximum(previous, 0)], schedule.final_alpha_cumprod
    )

    def step(latents: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        timestep, alpha, previous_alpha = inputs
        prediction = denoise(latents, timestep).astype(jnp.float32)
        clean, noise = clean_and_noise(schedule, prediction, latents, alpha)
        signal, sigma = signal_and_noise(previous_alpha, latents)
        return signal * clean + sigma * noise, None

    latents, _ = jax.lax.scan(step, latents, (jnp.asarray(timesteps), alphas, previous_alphas))
    return latents


def guided(
    apply_unet: Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array],
    prompt_embeds: jax.Array,
    negative_prompt_embeds: jax.Array,
    class_labels: jax.Array | None,
    guidance_scale: float,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): both branches in one batch of 2B.

    Args:
      apply_unet: (latents [N, h, w, C], timesteps [N], encoder_hidden_states [N, T, D], class_labels [N, E] or None)
        -> [N, h, w, C].
      prompt_embeds: float [B, T, D].
      negative_prompt_embeds: float [B, T, D], of the unconditional branch.
      class_labels: unCLIP image embedding with its noise level, float [B, E], or None; the unconditional branch gets
        zeros.
      guidance_scale: 1 or less means no guidance, and then one branch only is computed.

    Returns:
      A denoiser for `ddim_sample`.
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
