"""Losses of diffusion models: denoising with min-SNR weighting, and Diffusion-DPO."""

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
    """Returns the squared error of the prediction at a random timestep per sample (Ho et al. 2020, eq. 14).

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
    """Returns min(SNR, γ) over the prediction type's own weight: SNR for ε, SNR + 1 for v, 1 for x₀. Float32 [B]."""
    alphas = schedule.alphas_cumprod[timesteps]
    snr = alphas / (1.0 - alphas)
    clipped = jnp.minimum(snr, snr_gamma)
    divisor = {"epsilon": snr, "v_prediction": snr + 1.0, "sample": jnp.ones_like(snr)}[schedule.prediction_type]
    return clipped / jnp.maximum(divisor, 1e-12)


def diffusion_dpo_loss(
    winner_errors: jax.Array,
    loser_errors: jax.Array,
    reference_winner_errors: jax.Array,
    reference_loser_errors: jax.Array,
    beta: float,
) -> jax.Array:
    """Returns the Diffusion-DPO loss (Wallace et al. 2023, eq. 14).

    Args:
        winner_errors: mean squared errors of the prediction for preferred samples, float32 [P].
        loser_errors: errors for rejected samples, at the same timesteps and noise.
        reference_winner_errors: errors of the reference model for preferred samples.
        reference_loser_errors: errors of the reference model for rejected samples.
        beta: twice the paper's β T ω(λ_t), which is constant as in the public code; 5000 for SD 1.5.

    Returns:
        -log σ(-β/2 [(winner - reference winner) - (loser - reference loser)]), float32 [P].
    """
    margin = (winner_errors - reference_winner_errors) - (loser_errors - reference_loser_errors)
    return -jax.nn.log_sigmoid(-0.5 * beta * margin)
