"""Noise levels in the variance-exploding parametrisation: σ = √((1 - ᾱ) / ᾱ)."""

from __future__ import annotations

import numpy as np

from utilgen_jax.diffusion.schedules import NoiseSchedule

_RHO = 7.0  # of Karras et al. 2022, arXiv:2206.00364, equation 5
_BETA_SHAPE = 0.6  # both shapes of the beta distribution of Lee et al. 2024, arXiv:2407.12173


def training_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """Returns σ at all timesteps of training, float64 [num_train_timesteps], rising."""
    alphas = np.asarray(schedule.alphas_cumprod, np.float64)
    # Zero terminal SNR, where σ is infinite; as in diffusers, ᾱ is replaced by float16's smallest number.
    alphas = np.where(alphas == 0.0, 2.0**-24, alphas)
    return np.sqrt((1 - alphas) / alphas)


def spaced_sigmas(
    schedule: NoiseSchedule, timesteps: np.ndarray, over_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns timesteps and their σ, as the settings `use_{karras,exponential,beta}_sigmas` space them.

    Args:
        schedule: noise schedule; its settings may also have `sigma_min` and `sigma_max`.
        timesteps: falling timesteps [S], which may be fractional.
        over_all: whether the settings space the σ of all training timesteps, or those between the first and the last
            of `timesteps`.

    Returns:
        (timesteps, σ), both float64 [S]: those given without such a setting.
    """
    settings, levels = schedule.settings, training_sigmas(schedule)
    numbers = np.arange(len(levels))
    sigmas = np.interp(timesteps, numbers, levels)
    first, last = (levels[-1], levels[0]) if over_all else (sigmas[0], sigmas[-1])
    first, last = settings.get("sigma_max") or first, settings.get("sigma_min") or last
    ramp = np.linspace(0, 1, len(timesteps))
    if settings.get("use_karras_sigmas"):
        sigmas = (first ** (1 / _RHO) + ramp * (last ** (1 / _RHO) - first ** (1 / _RHO))) ** _RHO
    elif settings.get("use_exponential_sigmas"):
        sigmas = np.exp(np.log(first) + ramp * np.log(last / first))
    elif settings.get("use_beta_sigmas"):
        from scipy.stats import beta  # takes a second, and few need it

        sigmas = last + (first - last) * beta.ppf(1 - ramp, _BETA_SHAPE, _BETA_SHAPE)
    else:
        return timesteps.astype(np.float64), sigmas
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(levels), numbers), sigmas


def with_final(schedule: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """Appends the σ after the last step, of the setting `final_sigmas_type`: float64 [S + 1]."""
    final = training_sigmas(schedule)[0] if schedule.settings.get("final_sigmas_type") == "sigma_min" else 0.0
    return np.append(sigmas, final)


def largest_sigma(schedule: NoiseSchedule, sigmas: np.ndarray) -> float:
    """Returns the standard deviation of the noise that a sampler in σ starts from."""
    largest = float(np.max(sigmas))
    return (largest**2 + 1) ** 0.5 if schedule.settings["timestep_spacing"] == "leading" else largest


def alphas_of(sigmas: np.ndarray) -> np.ndarray:
    """Returns ᾱ of noise levels σ."""
    return 1 / (sigmas**2 + 1)
