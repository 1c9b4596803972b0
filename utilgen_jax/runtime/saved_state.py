"""A training's state on disk while it runs, so that one that was cut off continues with the same bits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from utilgen_jax.runtime import orbax_checkpoint
from utilgen_jax.types import PyTree


class SavedState:
    """Keeps a training's state in a folder.

    Args:
        folder: of the checkpoint.
        every_seconds: between two saves, about.
    """

    def __init__(self, folder: Path, every_seconds: float = 60.0) -> None:
        self.folder = folder
        self._every_seconds = every_seconds
        self._last = time.monotonic()

    def restored(self, state: PyTree) -> PyTree:
        """What was kept, with the shapes and shardings of `state`; or `state` itself where nothing was.

        Raises:
            InputError: what was kept is damaged, or of another training.
        """
        return orbax_checkpoint.restore(self.folder, state) if orbax_checkpoint.exists(self.folder) else state

    def keep(self, state: PyTree) -> None:
        """Keeps the state if it is time for it; called after every step."""
        if time.monotonic() - self._last >= self._every_seconds:
            orbax_checkpoint.save(self.folder, state)
            self._last = time.monotonic()

    def remove(self) -> None:
        """Removes what was kept; called when the result is on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
