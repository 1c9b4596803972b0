"""The denoising loss, with min-SNR weighting."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from utilgen_jax.diffusion.schedules import NoiseSchedule, add_noise, training_target


def denoising_loss(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: NoiseSchedule,
    latents: jax.Array,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """Mean squared error of the prediction at one random timestep per sample (Ho et al. 2020, eq. 14).

    Args:
      denoise: (noisy latents [B, h, w, C], timesteps int32 [B]) -> prediction [B, h, w, C].
      schedule: the noise schedule.
      latents: clean latents times the scaling factor, float32 [B, h, w, C].
      key: PRNG key for timesteps and noise.
      snr_gamma: γ of min-SNR weighting (Hang et al. 2023, section 3.4; 5 is usual); None for no weighting.

    Returns:
      Loss per sample, float32 [B].
    """
    timesteps = jax.random.randint(jax.random.fold_in(key, 0), latents.shape[:1], 0, schedule.num_train_timesteps)
    noise = jax.random.normal(jax.random.fold_in(key, 1), latents.shape)
    prediction = denoise(add_noise(schedule, latents, noise, timesteps), timesteps).astype(jnp.float32)
    target = training_target(schedule, latents, noise, timesteps)
    loss = jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))
    return loss if snr_gamma is None else loss * min_snr_weights(schedule, timesteps, snr_gamma)


def min_snr_weights(schedule: NoiseSchedule, timesteps: jax.Array, snr_gamma: float) -> jax.Array:
    """min(SNR, γ) over what the prediction type weighs by itself: SNR for ε, SNR + 1 for v, 1 for x₀. Float32 [B]."""
    alphas = schedule.alphas_cumprod[timesteps]
    snr = alphas / (1.0 - alphas)
    clipped = jnp.minimum(snr, snr_gamma)
    divisor = {"epsilon": snr, "v_prediction": snr + 1.0, "sample": jnp.ones_like(snr)}[schedule.prediction_type]
    return clipped / jnp.maximum(divisor, 1e-12)
