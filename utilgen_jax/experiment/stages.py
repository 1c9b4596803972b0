"""Cached steps: a stage is computed once, and a run that is started again continues where it was cut off.

A stage's result is a pytree of arrays in `<folder>/<stage>.safetensors`, on disk whole or not at all. While it is
computed, its trainings keep their states in `<folder>/<stage>.partial`. With several processes all run every stage and
the first one writes; a stage is finished for all of them once it is on disk.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utilgen_jax.errors import InputError
from utilgen_jax.report.job import current_job
from utilgen_jax.runtime.atomic_write import replace_file
from utilgen_jax.runtime.distributed import agree, check_terminated, wait_for_all
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.working_folder import exchange, was_saved

Result = TypeVar("Result")
Self = TypeVar("Self")
Arguments = ParamSpec("Arguments")
Arrays = dict[str, np.ndarray]

_current: ContextVar[StateFolder | None] = ContextVar("stage", default=None)


class StageCache:
    """Runs each stage once and keeps its result on disk, and in memory for later calls.

    Threads may run different stages at once.

    Attributes:
        seconds: by stage, those that it took when it was computed.

    Args:
        folder: for the results; made if it does not exist.
        saving: of the states of a stage that is computed; None: once a minute.
    """

    def __init__(self, folder: Path, saving: Saving | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._saving = saving or Saving()
        self._folder = folder
        self._results: dict[str, Any] = {}

    @property
    def current(self) -> str:
        """Name of the stage that this thread computes; the innermost one."""
        stage = _current.get()
        return "" if stage is None else stage.folder.stem

    @property
    def saved(self) -> SavedState:
        """Keeps the state of that stage's training; RuntimeError where none is computed."""
        stage = _current.get()
        if stage is None:
            raise RuntimeError("no stage is computed whose state there would be to save")
        return SavedState(stage)

    def run(self, name: str, kind: type[Result], compute: Callable[[], Result], folder: Path | None = None) -> Result:
        """Returns a stage's result: computed, or read where an earlier run has computed it.

        Args:
            name: of the stage; letters, digits and underscores.
            kind: type of the result: dict (nested, of arrays), np.ndarray, float, or a dataclass of such fields.
            compute: makes the result.
            folder: for the result, in place of the cache's own.

        Raises:
            InputError: the file on disk is damaged.
        """
        if name in self._results:
            return self._results[name]
        file = (folder or self._folder) / f"{name}.safetensors"
        states, job = StateFolder(file.with_suffix(".partial"), self._saving), current_job()
        if agree(file.is_file()):
            states.remove()  # of a run that was killed between its last two operations
            if job is not None:
                job.skip(name)
            arrays, self.seconds[name] = _read(file)
            if jax.process_index() == 0:
                print(f"{name}: done before, in {self.seconds[name]:.1f} s", file=sys.stderr)
        else:
            check_terminated()
            with nullcontext() if job is None else job.stage(name):
                arrays = self._compute(name, compute, file, states)
        result = _unpack(arrays, kind)
        self._results[name] = result
        return result

    def _compute(self, name: str, compute: Callable[[], Any], file: Path, states: StateFolder) -> Arrays:
        outer = _current.set(states)
        start = time.monotonic()
        try:
            arrays = _pack(compute())
        finally:
            _current.reset(outer)
        self.seconds[name] = round(states.seconds_before + time.monotonic() - start, 2)
        if jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as partial_file:
                save_file(arrays, partial_file, metadata={"seconds": str(self.seconds[name])})
        wait_for_all(f"stage {name}")
        states.remove()
        was_saved(file.parent)
        exchange(file.parent)
        return arrays


def step(
    name: str, kind: type
) -> Callable[[Callable[Concatenate[Self, Arguments], Result]], Callable[Concatenate[Self, Arguments], Result]]:
    """Makes a method a cached step of the experiment, `self.experiment`.

    Args:
        name: of the stage: a format string over the method's arguments, such as "classifier_{method.name}".
        kind: type of the result, see `StageCache.run`.
    """

    def decorate(
        method: Callable[Concatenate[Self, Arguments], Result],
    ) -> Callable[Concatenate[Self, Arguments], Result]:
        signature = inspect.signature(method)

        @wraps(method)
        def run(self: Self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            stages: StageCache = self.experiment.stages  # type: ignore[attr-defined]
            return stages.run(name.format(**bound.arguments), kind, partial(method, self, *args, **kwargs))

        return run

    return decorate


def read_result(file: Path, kind: type[Result]) -> Result:
    """Reads the result of a finished stage, such as an adapter that a run has trained.

    Args:
        file: `<stage>.safetensors`.
        kind: type of the result, see `StageCache.run`.

    Raises:
        InputError: the file is damaged.
    """
    return _unpack(_read(file)[0], kind)


def _pack(result: Any) -> Arrays:
    """A result as a flat map of arrays on the host; what is None is left out."""
    nested = _as_dict(result)
    flat = flatten_dict(nested if isinstance(nested, dict) else {"value": nested}, sep="/")
    return {path: np.asarray(to_host(leaf), order="C") for path, leaf in flat.items() if leaf is not None}


def _as_dict(value: Any) -> Any:
    """Makes dicts of a value's mappings and dataclasses, at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _as_dict(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _unpack(arrays: Arrays, kind: type[Result]) -> Result:
    if kind is float:
        return kind(arrays["value"])  # type: ignore[call-arg]
    if kind is np.ndarray:
        return arrays["value"]  # type: ignore[return-value]
    nested = unflatten_dict(arrays, sep="/")
    return kind(**nested) if dataclasses.is_dataclass(kind) else nested


def _read(file: Path) -> tuple[Arrays, float]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            # The handle iterates over names by keys() alone.
            names = tensors.keys()
            return {name: tensors.get_tensor(name) for name in names}, float(tensors.metadata()["seconds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        message = f"{file}: the stage's result cannot be read ({error}); remove the file to compute it again"
        raise InputError(message) from error
