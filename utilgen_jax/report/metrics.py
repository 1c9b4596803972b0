"""Scalars by stage and step, in `metrics.jsonl` and in TensorBoard files."""

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import cut_partial_line, named_in_errors

FILE_NAME = "metrics.jsonl"
_FLUSH_SECONDS = 30.0  # of TensorBoard's files
_RESERVED = ("step", "stage", "time")


class MetricsWriter:
    """Appends scalars to `<workdir>/metrics.jsonl` and mirrors them to `<workdir>/tensorboard`; a context manager.

    Each line is a JSON object with `step`, `stage`, `time` (unix seconds) and the scalars. Lines are flushed one by
    one, those of several threads in turn. Opening the file removes a partial last line, which a killed run may leave.

    Args:
        workdir: the run's folder; created if missing.
        enabled: whether to write; False on all processes but the first. Values are checked in any case.
    """

    def __init__(self, workdir: str | os.PathLike[str], enabled: bool = True) -> None:
        self._file, self._lock = None, threading.Lock()
        if not enabled:
            return
        folder = Path(workdir)
        self._path, self._events_folder = folder / FILE_NAME, folder / "tensorboard"
        self._events_folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            cut_partial_line(self._path)
        self._file = open(self._path, "a", buffering=1, encoding="utf-8", newline="\n")
        with named_in_errors(self._events_folder):
            self._events = _Events(self._events_folder)

    def write(self, step: int, stage: str, **scalars: Any) -> None:
        """Writes the scalars of one step.

        Args:
            step: number of steps done in this stage.
            stage: name of the stage, e.g. "real classifier".
            **scalars: numbers, or arrays of one element (NumPy or JAX), by name.

        Raises:
            FloatingPointError: a value is NaN or infinite; raised on all processes, so that all of them stop.
            ValueError: a value is not a single number, or its name is reserved.
        """
        numbers = {name: _number(value, name) for name, value in scalars.items()}
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise FloatingPointError(f"stage {stage!r}, step {step}: {name} is {number}")
        if self._file is None:
            return
        row = {"step": int(step), "stage": stage, "time": round(time.time(), 3), **numbers}
        with self._lock:
            with named_in_errors(self._path):
                self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            with named_in_errors(self._events_folder):
                for name, number in numbers.items():
                    self._events.add(f"{stage}/{name}".replace(" ", "_"), number, int(step))

    def close(self) -> None:
        """Closes both outputs; a second call does nothing."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                with named_in_errors(self._path):
                    file.close()
            finally:
                with named_in_errors(self._events_folder):
                    self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.close()
        except OSError:
            if exception[0] is None:  # else this is the same full disk again
                raise


class _Events:
    """Appends scalars to a file of TensorBoard's, in this thread: tensorboardX's own writer loses errors in another.

    Args:
        folder: for the file.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # slow to import

        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def read_metrics(workdir: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
    """Reads `<workdir>/metrics.jsonl`, one dict for each step of each stage, in the order first written.

    Where a resumed stage has logged a step twice, the later values are used. A partial last line is ignored.

    Args:
        workdir: the run's folder.
        stage: return only this stage's rows; None for all.

    Returns:
        Rows with `step`, `stage`, `time` and the scalars; an empty list if the file does not exist.

    Raises:
        InputError: a line is not a row of metrics; names the file and the line.
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
            raise InputError(f"{path}, line {number}: not a line of metrics; remove the line") from error
        if stage is None or key[0] == stage:
            rows.setdefault(key, {}).update(row)
    return list(rows.values())


def _number(value: Any, name: str) -> int | float:
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a reserved field and cannot name a metric")
    if hasattr(value, "item"):
        if getattr(value, "size", 1) != 1:
            raise ValueError(f"metric {name!r} must be one number, got shape {value.shape}")
        value = value.item()
    if not isinstance(value, int | float):
        raise ValueError(f"metric {name!r} must be a number, got {type(value).__name__}")
    return value
