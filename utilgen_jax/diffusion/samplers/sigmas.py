"""Noise levels in the variance-exploding parametrisation: σ = √((1 - ᾱ) / ᾱ)."""

from __future__ import annotations

import numpy as np

from utilgen_jax.diffusion.schedules import NoiseSchedule

# Settings supported by the samplers in σ, see `check_settings`.
SUPPORTED_SIGMAS = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "final_sigmas_type": ("zero", "sigma_min"),
}


def sigmas_at(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
    """Returns σ at timesteps [S], which may be fractional, and after the last step: float64 [S + 1]."""
    alphas = np.asarray(schedule.alphas_cumprod, np.float64)
    # Zero terminal SNR, where σ is infinite; as in diffusers, ᾱ is replaced by float16's smallest number.
    alphas = np.where(alphas == 0.0, 2.0**-24, alphas)
    sigmas = np.sqrt((1 - alphas) / alphas)
    final = sigmas[0] if schedule.settings.get("final_sigmas_type") == "sigma_min" else 0.0
    return np.append(np.interp(timesteps, np.arange(len(sigmas)), sigmas), final)


def alphas_of(sigmas: np.ndarray) -> np.ndarray:
    """Returns ᾱ of noise levels σ."""
    return 1 / (sigmas**2 + 1)
