"""The noise schedule of a latent diffusion model, as its `scheduler_config.json` describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.errors import InputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

# Settings that this code does not compute: only these values pass. The second group matters only where one samples.
_REQUIRED: dict[str, Any] = {"trained_betas": None}
_REQUIRED_TO_SAMPLE: dict[str, Any] = {
    "clip_sample": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
}


@struct.dataclass
class NoiseSchedule:
    """How much signal and noise a latent holds at each timestep.

    Attributes:
      alphas_cumprod: float32 [num_train_timesteps], ᾱ_t of DDPM (Ho et al. 2020, eq. 4).
      final_alpha_cumprod: float32 scalar, ᾱ "before" timestep 0.
      prediction_type: what the UNet predicts: one of `PREDICTION_TYPES`.
      timestep_spacing: how few timesteps are chosen among the many: one of `TIMESTEP_SPACINGS`.
      steps_offset: added to the timesteps of "leading" spacing.
    """

    alphas_cumprod: jax.Array
    final_alpha_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False)
    timestep_spacing: str = struct.field(pytree_node=False)
    steps_offset: int = struct.field(pytree_node=False)

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps of training."""
        return self.alphas_cumprod.shape[0]


def load_schedule(config: Mapping[str, Any], to_sample: bool = True) -> NoiseSchedule:
    """Builds the schedule from a parsed `scheduler_config.json`, with diffusers' defaults where a field is missing.

    Args:
      config: the parsed file.
      to_sample: False for a schedule that only adds noise (unCLIP's, of image embeddings); how its checkpoint would
        sample then does not matter.

    Raises:
      InputError: a setting is unknown or is one that this code does not compute.
    """
    for name, required in (_REQUIRED | _REQUIRED_TO_SAMPLE if to_sample else _REQUIRED).items():
        if config.get(name, required) != required:
            raise InputError(f"scheduler_config.json: {name}={config[name]!r} is not supported; only {required!r} is")
    prediction_type = config.get("prediction_type", "epsilon")
    spacing = config.get("timestep_spacing", "leading")
    for name, value, choices in (
        ("prediction_type", prediction_type, PREDICTION_TYPES),
        ("timestep_spacing", spacing, TIMESTEP_SPACINGS),
    ):
        if value not in choices:
            raise InputError(f"scheduler_config.json: {name}={value!r} is not one of {', '.join(choices)}")
    alphas_cumprod = np.cumprod(1.0 - _betas(config))
    if config.get("rescale_betas_zero_snr", False):
        if prediction_type == "epsilon":
            raise InputError(
                "scheduler_config.json: rescale_betas_zero_snr=True leaves nothing but noise at the last timestep, and "
                "prediction_type='epsilon' could not start there; it needs 'v_prediction' or 'sample'"
            )
        alphas_cumprod = _rescale_to_zero_terminal_snr(alphas_cumprod)
    final = 1.0 if config.get("set_alpha_to_one", True) else alphas_cumprod[0]
    return NoiseSchedule(
        alphas_cumprod=jnp.asarray(alphas_cumprod, jnp.float32),
        final_alpha_cumprod=jnp.asarray(final, jnp.float32),
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=int(config.get("steps_offset", 0)),
    )


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """The variances β_t [num_train_timesteps], float64."""
    number = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(start, end, number)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, number) ** 2
    if kind == "squaredcos_cap_v2":
        # Nichol & Dhariwal 2021, eq. 17, each β capped at 0.999.
        alpha_bar = np.cos((np.arange(number + 1) / number + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise InputError(
        f"scheduler_config.json: beta_schedule={kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2"
    )


def _rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales √ᾱ so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def inference_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """The timesteps to visit, from the noisiest to the cleanest: int32 [num_steps] (Lin et al. 2023, table 2).

    Raises:
      InputError: `num_steps` is not between 1 and what the schedule has timesteps for.
    """
    total = schedule.num_train_timesteps
    # "leading" leaves out the last timesteps anyway; with a stride of 1 its offset would pass the last one.
    largest = total - schedule.steps_offset if schedule.timestep_spacing == "leading" else total
    if not 1 <= num_steps <= largest:
        raise InputError(f"the number of sampling steps must be between 1 and {largest}, not {num_steps}")
    if schedule.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, num_steps).round()[::-1].astype(np.int32)
    if schedule.timestep_spacing == "leading":
        ratio = total // num_steps
        return ((np.arange(num_steps) * ratio).round()[::-1] + schedule.steps_offset).astype(np.int32)
    # Rounding gives `arange` one element too many for some numbers of steps (61, 103 ...).
    return (np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1).astype(np.int32)


def _per_sample(values: jax.Array, like: jax.Array) -> jax.Array:
    """Shapes a scalar or [B] so that it multiplies [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def signal_and_noise(alpha_cumprod: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """√ᾱ and √(1 - ᾱ), shaped to multiply `like` [B, ...]; `alpha_cumprod` is a scalar or [B]."""
    alpha_cumprod = _per_sample(alpha_cumprod, like)
    return jnp.sqrt(alpha_cumprod), jnp.sqrt(1.0 - alpha_cumprod)


def add_noise(schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Diffuses clean latents to `timesteps` [B]: √ᾱ x + √(1-ᾱ) ε, float32 [B, h, w, C]."""
    signal, sigma = signal_and_noise(schedule.alphas_cumprod[timesteps], latents)
    return signal * latents + sigma * noise


def training_target(schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What the UNet should predict at `timesteps` [B], as the schedule's prediction type says: [B, h, w, C]."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    signal, sigma = signal_and_noise(schedule.alphas_cumprod[timesteps], latents)
    return signal * noise - sigma * latents


def clean_and_noise(
    schedule: NoiseSchedule, prediction: jax.Array, noisy_latents: jax.Array, alpha_cumprod: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Splits noisy latents into the clean latents and the noise that the prediction implies.

    Args:
      schedule: gives the prediction type.
      prediction: the UNet's output, float32 [B, h, w, C].
      noisy_latents: its input, float32 [B, h, w, C].
      alpha_cumprod: ᾱ at the input's timestep, a scalar or [B].

    Returns:
      (predicted clean latents, predicted noise), both float32 [B, h, w, C].
    """
    signal, sigma = signal_and_noise(alpha_cumprod, noisy_latents)
    if schedule.prediction_type == "epsilon":
        return (noisy_latents - sigma * prediction) / signal, prediction
    if schedule.prediction_type == "sample":
        return prediction, (noisy_latents - signal * prediction) / sigma
    return signal * noisy_latents - sigma * prediction, signal * prediction + sigma * noisy_latents
