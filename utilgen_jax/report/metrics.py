"""Scalars by stage and step: `metrics.jsonl` for programs and people, TensorBoard files for curves."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Self

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import cut_partial_line

FILE_NAME = "metrics.jsonl"
_RESERVED = ("step", "stage", "time")


class MetricsWriter:
    """Appends scalars to `<workdir>/metrics.jsonl` and mirrors them to `<workdir>/tensorboard`; a context manager.

    Each line is a JSON object with `step`, `stage`, `time` (unix seconds) and the scalars, and is on disk when `write`
    returns. A partial last line, left by a run that was killed while it wrote, is cut off on opening.

    Args:
        workdir: the run's folder; made if it does not exist.
        enabled: False on every process but the first: values are still checked, nothing is written.
    """

    def __init__(self, workdir: str | os.PathLike[str], enabled: bool = True) -> None:
        self._file = None
        if not enabled:
            return
        from tensorboardX import SummaryWriter  # here, since its import costs as much as a small stage

        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE_NAME).exists():
            cut_partial_line(folder / FILE_NAME)
        self._file = open(folder / FILE_NAME, "a", buffering=1, encoding="utf-8", newline="\n")
        self._tensorboard = SummaryWriter(logdir=str(folder / "tensorboard"))

    def write(self, step: int, stage: str, **scalars: Any) -> None:
        """Writes the scalars of one step.

        Args:
            step: steps done in this stage.
            stage: name of the stage, e.g. "real classifier".
            **scalars: numbers, or arrays of one element (NumPy or JAX), by name.

        Raises:
            FloatingPointError: a value is NaN or infinite. Raised on every process, so that all of them stop.
            ValueError: a value is not one number, or has the name of one of the line's own fields.
        """
        numbers = {name: _number(value, name) for name, value in scalars.items()}
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise FloatingPointError(f"stage {stage!r}, step {step}: {name} is {number}")
        if self._file is None:
            return
        row = {"step": int(step), "stage": stage, "time": round(time.time(), 3), **numbers}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for name, number in numbers.items():
            self._tensorboard.add_scalar(f"{stage}/{name}".replace(" ", "_"), number, int(step))

    def close(self) -> None:
        """Closes both outputs; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(workdir: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
    """Reads `<workdir>/metrics.jsonl`, one dict for each step of each stage, in the order first written.

    A stage that was interrupted and begun again has logged some steps twice: the later values count. A partial last
    line is left out.

    Args:
        workdir: the run's folder.
        stage: only the rows of this stage; None for all.

    Returns:
        Rows with `step`, `stage`, `time` and the scalars; an empty list if the file does not exist.

    Raises:
        InputError: a whole line is not a row; names the file and the line.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            key = (row["stage"], row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not a line of metrics; remove the line to go on") from error
        if stage is None or key[0] == stage:
            rows.setdefault(key, {}).update(row)
    return list(rows.values())


def _number(value: Any, name: str) -> int | float:
    if name in _RESERVED:
        raise ValueError(f"a metric cannot be called {name!r}: each line has a field of that name")
    if hasattr(value, "item"):
        if getattr(value, "size", 1) != 1:
            raise ValueError(f"metric {name!r} must be one number, got shape {value.shape}")
        value = value.item()
    if not isinstance(value, int | float):
        raise ValueError(f"metric {name!r} must be a number, got {type(value).__name__}")
    return value
