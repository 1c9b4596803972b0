"""A training's state on disk while it runs, so that one that was cut off continues with the same bits."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.runtime.distributed import agree
from utilgen_jax.runtime.state_folder import StateFolder
from utilgen_jax.types import PyTree

State = TypeVar("State")


class SavedState:
    """Keeps the state of one training, alone or as a part of several that lead to one result.

    Args:
        folder: of the result.
        name: of the training among those of the folder; letters, digits and underscores; "": it is the only one.
    """

    def __init__(self, folder: StateFolder, name: str = "") -> None:
        self._folder = folder
        self._name = name
        self._saved_in = 0  # the folder's period

    @property
    def title(self) -> str:
        """What it is of, for messages."""
        return f"{self._folder.folder.stem} {self._name}".strip()

    def part(self, name: str) -> SavedState:
        """The state of a part of this training."""
        return SavedState(self._folder, f"{self._name}_{name}" if self._name else name)

    def restored(self, state: State) -> tuple[int, State]:
        """Where to go on: steps done, and the state after them.

        Args:
            state: before the first step; what was kept gets its shapes and shardings. It is returned with 0 where
                nothing was kept.

        Raises:
            InputError: what was kept is damaged, or of another training.
        """
        self._saved_in = self._folder.open(self._key)
        found = self._folder.read(self._key, {"step": 0, "state": state})
        return (0, state) if found is None else (int(found["step"]), found["state"])

    def keep(self, step: int, state: PyTree, now: bool = False) -> None:
        """Saves the state if that is due.

        Args:
            step: steps done.
            state: after them.
            now: saves it whether or not.
        """
        period = self._folder.period()
        if now or agree(period > self._saved_in):
            self._saved_in = period
            self._folder.save(period, {self._key: {"step": step, "state": state}})

    def finish(self, step: int, state: PyTree) -> None:
        """Keeps the state after the last step until the other parts of the result are there.

        Args:
            step: steps done.
            state: after them; it is copied.
        """
        if self._name:
            self._folder.save_later(self._key, {"step": step, "state": jax.tree.map(_copied, state)})

    @property
    def _key(self) -> str:
        return self._name or "training"


def _copied(leaf: Any) -> Any:
    """A copy that steps to come, which take over memory, leave alone; on the host where that can be."""
    if not isinstance(leaf, jax.Array):
        return leaf
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jnp.copy(leaf) if is_key or not leaf.is_fully_addressable else np.array(leaf)
