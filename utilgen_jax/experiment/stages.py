"""Stages whose results are on disk: a run that is started again continues after the last finished one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import replace_file

Result = dict[str, np.ndarray]


class Stages:
    """Runs each stage once and keeps what it returns in `<folder>/<stage>.safetensors`.

    A result is a flat map of arrays; it is on disk whole or not at all. With several processes all run every stage and
    the first one writes.

    Args:
        folder: for the results; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}

    def run(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]], folder: Path | None = None) -> Result:
        """Returns the stage's result, from disk if it is there.

        Args:
            name: of the stage; letters, digits and underscores.
            compute: makes the result.
            folder: where the result is kept if not among the others.

        Raises:
            InputError: the file on disk is damaged.
        """
        file = (folder or self._folder) / f"{name}.safetensors"
        if file.is_file():
            result, self.seconds[name] = _read(file)
            if jax.process_index() == 0:
                print(f"{name}: done before, in {self.seconds[name]:.1f} s", file=sys.stderr)
            return result
        start = time.monotonic()
        result = {key: np.asarray(value, order="C") for key, value in compute().items()}
        self.seconds[name] = round(time.monotonic() - start, 2)
        if jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as partial:
                save_file(result, partial, metadata={"seconds": str(self.seconds[name])})
        return result


def _read(file: Path) -> tuple[Result, float]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            # The handle iterates over names by keys() alone.
            names = tensors.keys()
            return {name: tensors.get_tensor(name) for name in names}, float(tensors.metadata()["seconds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        message = f"{file}: the stage's result cannot be read ({error}); remove the file to compute it again"
        raise InputError(message) from error
