"""The difficulty encoder beside a checkpoint: loaded, saved, and its token put behind the text."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from utilgen_jax import checkpoints
from utilgen_jax.generator.loading import load_params
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.types import Params

# The component's folder, beside those of the checkpoint or of what was trained on it.
FOLDER_NAME = "difficulty_encoder"


def load_difficulty_encoder(folder: Path, dtype: jnp.dtype = jnp.float32) -> tuple[DifficultyEncoder, Params]:
    """Loads `folder/difficulty_encoder`, weights and activations in `dtype`.

    Raises:
        InputError: it is missing or broken, or its weights do not have the sizes that its config states.
    """
    folder = Path(folder) / FOLDER_NAME
    encoder = DifficultyEncoder.from_config(checkpoints.load_config(folder), dtype)
    return encoder, load_params(folder, encoder, dtype)


def save_difficulty_encoder(folder: Path, encoder: DifficultyEncoder, params: Params) -> None:
    """Writes `folder/difficulty_encoder`: `config.json` and a safetensors file with torch's names and layouts."""
    checkpoints.save_component(Path(folder) / FOLDER_NAME, encoder.to_config(), params)


def append_difficulty(
    encoder: DifficultyEncoder, params: Params, prompt_embeds: jax.Array, labels: jax.Array, difficulty: jax.Array
) -> jax.Array:
    """Text states with the difficulty token behind them.

    Args:
        encoder: as wide as the text states.
        params: its weights.
        prompt_embeds: float [B, T, D].
        labels: int [B].
        difficulty: float [B] in [0, 1].

    Returns:
        Float [B, T + 1, D], in the dtype of `prompt_embeds`.
    """
    token = jnp.asarray(encoder.apply({"params": params}, labels, difficulty), prompt_embeds.dtype)
    return jnp.concatenate([prompt_embeds, token], axis=1)


def add_difficulty(
    encoder: DifficultyEncoder, params: Params, prompt_embeds: jax.Array, labels: jax.Array, difficulty: jax.Array
) -> jax.Array:
    """Text states with the difficulty token added to the last of them, float [B, T, D]; arguments as above."""
    token = jnp.asarray(encoder.apply({"params": params}, labels, difficulty), prompt_embeds.dtype)
    return prompt_embeds.at[:, -1].add(token[:, 0])
