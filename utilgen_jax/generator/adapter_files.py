"""LoRA files of other programs for a checkpoint, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utilgen_jax.checkpoints.lora_files import COMPONENTS, load_lora
from utilgen_jax.generator.stable_diffusion import Architecture, expected_params
from utilgen_jax.models.lora import Lora, sum_of_loras, with_scale


def load_loras(files: Sequence[tuple[Path, float]], architecture: Architecture) -> dict[str, Lora]:
    """Reads LoRA files.

    Args:
        files: each file or folder, see `checkpoints.lora_files.load_lora`, and its strength.
        architecture: the checkpoint's.

    Returns:
        {component: the sum of all LoRAs}; empty without files.

    Raises:
        InputError: a file cannot be read, or does not fit.
    """
    if not files:
        return {}
    shapes = {name: expected_params(getattr(architecture, name)) for name in COMPONENTS}
    found: dict[str, list[Lora]] = {}
    for file, scale in files:
        for component, lora in load_lora(file, shapes).items():
            found.setdefault(component, []).append(with_scale(lora, scale))
    return {component: sum_of_loras(loras) for component, loras in found.items()}
