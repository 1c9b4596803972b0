"""LoRA files of other programs for a checkpoint, several at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utilgen_jax.checkpoints.lora_files import COMPONENTS, load_adapter
from utilgen_jax.checkpoints.weight_changes import WeightChange, apply_changes
from utilgen_jax.generator.stable_diffusion import Architecture, expected_params
from utilgen_jax.models.lora import Lora, sum_of_loras, with_scale
from utilgen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """The sum of several files.

    Attributes:
        loras: plain low-rank terms by component, each times its strength.
        changes: what DoRA, LoHa and LoKr make of weights, with strengths, by component and linen path of the layer.
    """

    loras: dict[str, Lora]
    changes: dict[str, dict[tuple[str, ...], list[tuple[WeightChange, float]]]]

    def changed(self, component: str, params: Params) -> dict[str, Any]:
        """Returns a component's weights with the changes in them; the plain low-rank terms are left out."""
        return apply_changes(params, self.changes[component]) if component in self.changes else params


def load_adapter_files(files: Sequence[tuple[Path, float]], architecture: Architecture) -> AdapterFiles:
    """Reads LoRA files.

    Args:
        files: each file or folder, see `checkpoints.lora_files.load_adapter`, and its strength.
        architecture: the checkpoint's.

    Raises:
        InputError: a file cannot be read, or does not fit.
    """
    modules = architecture.modules
    shapes = {name: expected_params(modules[name]) for name in COMPONENTS if name in modules} if files else {}
    loras: dict[str, list[Lora]] = {}
    changes: dict[str, dict[tuple[str, ...], list[tuple[WeightChange, float]]]] = {}
    for file, strength in files:
        adapter = load_adapter(file, shapes)
        for component, lora in adapter.loras.items():
            loras.setdefault(component, []).append(with_scale(lora, strength))
        for component, its_changes in adapter.changes.items():
            for path, change in its_changes.items():
                changes.setdefault(component, {}).setdefault(path, []).append((change, strength))
    return AdapterFiles({name: sum_of_loras(its_loras) for name, its_loras in loras.items()}, changes)
