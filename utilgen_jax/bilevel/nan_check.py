"""Which group of tensors was the first to hold a NaN or an infinity, and at which step.

Kept on the device as one number a group, so that looking costs nothing and may be late: the answer stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.runtime.sharding import MIN_ELEMENTS_TO_SPLIT
from utilgen_jax.types import PyTree

# In the order in which one update computes them: of several that break at the same step, the first is the likely cause.
_ORDER = (
    "generated inputs",
    "losses",
    "weights",
    "validation loss",
    "outer gradient",
    "params",
    "weighting",
    "adapter",
)


def tensor_groups(tree: Mapping[str, PyTree]) -> dict[str, list[jax.Array]]:
    """The leaves of a pytree by the first two parts of their path, e.g. 'params/layer1.0' or 'adapter/loras'."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        groups.setdefault(jax.tree_util.keystr(path[:2], simple=True, separator="/"), []).append(leaf)
    return groups


def no_steps(names: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The record before the first step: -1 for each group."""
    return {name: jnp.full((), -1, jnp.int32) for name in names}


def note_nonfinite(
    record: Mapping[str, jax.Array], groups: Mapping[str, list[jax.Array]], step: jax.Array
) -> dict[str, jax.Array]:
    """The record after a step: `step` for each group that is not finite now and was before.

    Args:
        record: by group, int32 scalars; -1 where all was finite so far.
        groups: the tensors that this step computed; groups of the record that are missing here keep their entry.
        step: int32 scalar.
    """
    new = dict(record)
    for name, leaves in groups.items():
        finite = jnp.array(True)
        for leaf in _few(leaves):
            finite &= jnp.all(jnp.isfinite(leaf))
        new[name] = jnp.where((record[name] < 0) & ~finite, step, record[name])
    return new


def _few(leaves: list[jax.Array]) -> list[jax.Array]:
    """The same numbers in fewer arrays: those of small leaves, which are never split over devices, in one."""
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < MIN_ELEMENTS_TO_SPLIT]
    large = [leaf for leaf in leaves if leaf.size >= MIN_ELEMENTS_TO_SPLIT]
    # A program of a hundred reductions more takes seconds longer to compile.
    return [jnp.concatenate(small), *large] if small else large


def check_finite(record: Mapping[str, jax.Array]) -> None:
    """Stops a run that has broken; call it on `BilevelState.first_nonfinite` every now and then.

    Raises:
        FloatingPointError: names the first step that was not finite, and its tensor groups, the likely cause first.
    """
    steps = {name: int(step) for name, step in jax.device_get(dict(record)).items()}
    broken = [step for step in steps.values() if step >= 0]
    if not broken:
        return
    first = min(broken)
    names = [name for name, step in steps.items() if step == first]
    names.sort(key=lambda name: (_ORDER.index(name.split("/")[0]), name))
    rest = f", then {', '.join(names[1:])}" if len(names) > 1 else ""
    raise FloatingPointError(f"step {first}: NaN or infinity in {names[0]}{rest}")
