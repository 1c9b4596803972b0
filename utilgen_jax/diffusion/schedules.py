"""Noise schedules of latent diffusion models, from `scheduler_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import FrozenDict

from utilgen_jax.diffusion.scheduler_fields import WHERE, class_settings, schedule_settings
from utilgen_jax.errors import InputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@struct.dataclass
class NoiseSchedule:
    """Levels of signal and noise by timestep.

    Attributes:
        alphas_cumprod: ᾱ_t of DDPM (Ho et al. 2020, eq. 4), float32 [num_train_timesteps].
        prediction_type: output of the UNet, one of `PREDICTION_TYPES`.
        settings: the fields of `scheduler_config.json` that stand there; each sampler reads its own, see `read_by`.
    """

    alphas_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False)
    settings: Mapping[str, Any] = struct.field(pytree_node=False, default=FrozenDict())

    @property
    def num_train_timesteps(self) -> int:
        """Number of training timesteps."""
        return self.alphas_cumprod.shape[0]


def load_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Builds the schedule of a parsed `scheduler_config.json`; missing fields have the defaults of its class.

    Settings of a single sampler are checked when it is created.

    Args:
        config: the parsed file; without a `_class_name` its class is DDIMScheduler.

    Raises:
        InputError: a setting is unknown or not supported.
    """
    values = schedule_settings(config)
    prediction_type = values["prediction_type"]
    alphas_cumprod = np.cumprod(1.0 - _betas(values))
    if values.get("rescale_betas_zero_snr"):
        if prediction_type == "epsilon":
            raise InputError(
                f"{WHERE}: rescale_betas_zero_snr=True leaves only noise at the last timestep, where "
                "prediction_type='epsilon' is undefined; it needs 'v_prediction' or 'sample'"
            )
        alphas_cumprod = _rescale_to_zero_terminal_snr(alphas_cumprod)
    own = {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}
    return NoiseSchedule(
        alphas_cumprod=jnp.asarray(alphas_cumprod, jnp.float32),
        prediction_type=prediction_type,
        settings=FrozenDict({name: _hashable(value) for name, value in own.items()}),
    )


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return repr(value) if isinstance(value, dict) else value


def read_by(schedule: NoiseSchedule, class_name: str, **overrides: Any) -> NoiseSchedule:
    """Returns a schedule with all settings that a class of diffusers has, in place of those of the file.

    Args:
        schedule: from `load_schedule`.
        class_name: key of `scheduler_fields.SCHEDULERS`.
        **overrides: settings in place of the file's.

    Raises:
        InputError: a value is not supported.
    """
    settings = class_settings(class_name, {**schedule.settings, **overrides})
    return NoiseSchedule(schedule.alphas_cumprod, schedule.prediction_type, FrozenDict(settings))


def with_spacing(schedule: NoiseSchedule, spacing: str) -> NoiseSchedule:
    """Returns a schedule whose samplers place their steps so: 'leading', 'linspace' or 'trailing'."""
    settings: FrozenDict[str, Any] = FrozenDict({**schedule.settings, "timestep_spacing": spacing})
    return NoiseSchedule(schedule.alphas_cumprod, schedule.prediction_type, settings)


def _betas(values: Mapping[str, Any]) -> np.ndarray:
    """Returns the variances β_t, float64 [num_train_timesteps]."""
    number, start, end = values["num_train_timesteps"], values["beta_start"], values["beta_end"]
    if values["beta_schedule"] == "linear":
        return np.linspace(start, end, number)
    if values["beta_schedule"] == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, number) ** 2
    # Nichol & Dhariwal 2021, eq. 17, each β capped at 0.999.
    alpha_bar = np.cos((np.arange(number + 1) / number + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales √ᾱ to have pure noise at the last timestep (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def inference_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns descending timesteps for sampling, int32 [num_steps] (Lin et al. 2023, table 2).

    Args:
        schedule: noise schedule whose settings have `timestep_spacing` and, for "leading", `steps_offset`.
        num_steps: number of timesteps.

    Raises:
        InputError: `num_steps` is not between 1 and the number of available timesteps.
    """
    total = schedule.num_train_timesteps
    spacing, offset = schedule.settings["timestep_spacing"], schedule.settings["steps_offset"]
    # "leading" omits the last timesteps; with stride 1 its offset would exceed the last one.
    check_num_steps(num_steps, total - offset if spacing == "leading" else total)
    if spacing == "linspace":
        return np.linspace(0, total - 1, num_steps).round()[::-1].astype(np.int32)
    if spacing == "leading":
        ratio = total // num_steps
        return ((np.arange(num_steps) * ratio).round()[::-1] + offset).astype(np.int32)
    # For some numbers of steps (61, 103, ...) rounding errors give `arange` one element too many.
    return (np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1).astype(np.int32)


def check_num_steps(num_steps: int, largest: int) -> None:
    """Raises InputError unless `num_steps` is between 1 and `largest`."""
    if not 1 <= num_steps <= largest:
        raise InputError(f"the number of sampling steps must be between 1 and {largest}, not {num_steps}")


def alphas_at(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
    """Returns ᾱ at timesteps int [S], for tables on the host: float64 [S].

    Negative timesteps have ᾱ = 1, or that of the first timestep if the setting `set_alpha_to_one` is false.
    """
    alphas = np.asarray(schedule.alphas_cumprod, np.float64)
    final = 1.0 if schedule.settings.get("set_alpha_to_one", True) else alphas[0]
    return np.where(timesteps >= 0, alphas[np.maximum(timesteps, 0)], final)


def _per_sample(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes a scalar or [B] for multiplication with [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def signal_and_noise(alpha_cumprod: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns √ᾱ and √(1 - ᾱ), shaped to multiply `like` [B, ...]; `alpha_cumprod` is a scalar or [B]."""
    alpha_cumprod = _per_sample(alpha_cumprod, like)
    return jnp.sqrt(alpha_cumprod), jnp.sqrt(1.0 - alpha_cumprod)


def add_noise(schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Diffuses clean latents to `timesteps` [B]: √ᾱ x + √(1-ᾱ) ε, float32 [B, h, w, C]."""
    return diffuse(latents, noise, schedule.alphas_cumprod[timesteps])


def diffuse(latents: jax.Array, noise: jax.Array, alpha_cumprod: jax.Array) -> jax.Array:
    """Diffuses clean latents [B, h, w, C] to the level ᾱ (a scalar or [B]): √ᾱ x + √(1-ᾱ) ε."""
    signal, sigma = signal_and_noise(alpha_cumprod, latents)
    return signal * latents + sigma * noise


def training_target(schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Returns the UNet's target at `timesteps` [B] for the schedule's prediction type: [B, h, w, C]."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    signal, sigma = signal_and_noise(schedule.alphas_cumprod[timesteps], latents)
    return signal * noise - sigma * latents


def clean_and_noise(
    prediction_type: str, prediction: jax.Array, noisy_latents: jax.Array, alpha_cumprod: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the clean latents and the noise that a prediction implies.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        prediction: the UNet's output, float32 [B, h, w, C].
        noisy_latents: its input, float32 [B, h, w, C].
        alpha_cumprod: ᾱ at the timestep of the input, a scalar or [B].

    Returns:
        (predicted clean latents, predicted noise), both float32 [B, h, w, C].
    """
    signal, sigma = signal_and_noise(alpha_cumprod, noisy_latents)
    if prediction_type == "epsilon":
        return (noisy_latents - sigma * prediction) / signal, prediction
    if prediction_type == "sample":
        return prediction, (noisy_latents - signal * prediction) / sigma
    return signal * noisy_latents - sigma * prediction, signal * prediction + sigma * noisy_latents


def prediction_of(
    prediction_type: str, clean_latents: jax.Array, noisy_latents: jax.Array, alpha_cumprod: jax.Array
) -> jax.Array:
    """The prediction that implies these clean latents; the inverse of `clean_and_noise`, with its arguments."""
    signal, sigma = signal_and_noise(alpha_cumprod, noisy_latents)
    if prediction_type == "sample":
        return clean_latents
    noise = (noisy_latents - signal * clean_latents) / sigma
    return noise if prediction_type == "epsilon" else signal * noise - sigma * clean_latents
