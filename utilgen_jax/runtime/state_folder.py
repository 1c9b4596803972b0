"""The folder in which the trainings that lead to one result keep their states until it is on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from utilgen_jax.errors import InputError
from utilgen_jax.runtime import orbax_checkpoint
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.distributed import agree, wait_for_all
from utilgen_jax.runtime.working_folder import was_saved
from utilgen_jax.types import PyTree

ABOUT = "about.json"


@dataclasses.dataclass(frozen=True)
class Saving:
    """When states are saved, and which may be continued.

    Attributes:
        every_seconds: between two saves, about; 0: after every step.
        identity: what a result depends on beside the state, such as versions and a digest of the config. A state of
            another identity is not continued.
    """

    every_seconds: float = 60.0
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)


class StateFolder:
    """Keeps states under their names. A save is due in every period of so many seconds.

    Threads may use it at once; of several processes all do the same.

    Attributes:
        folder: made with the first save; its name is that of the result.
        seconds_before: those that the runs which were cut off had taken until they saved the last time.

    Args:
        folder: see above.
        saving: when and what; None: once a minute, whatever it is.
    """

    def __init__(self, folder: Path, saving: Saving | None = None) -> None:
        self.folder = folder
        self.seconds_before = 0.0
        self._saving = saving or Saving()
        self._lock = threading.RLock()
        self._start: float | None = None
        self._names: set[str] = set()
        self._waiting: dict[str, PyTree] = {}
        self._saved_in = 0  # the period

    def open(self, name: str) -> int:
        """Starts the clock and looks at what is there, if nothing was opened before; returns the period.

        Args:
            name: of a training's state.

        Raises:
            RuntimeError: another training has this name.
            InputError: what is there is damaged.
        """
        with self._lock:
            if name in self._names:
                raise RuntimeError(f"{self.folder}: two trainings keep their states as {name!r}")
            self._names.add(name)
            if self._start is None:
                self._start = time.monotonic()
                self._check()
            return self.period()

    def period(self) -> int:
        """The number of saves that should have been until now."""
        assert self._start is not None
        elapsed = time.monotonic() - self._start
        return int(elapsed / self._saving.every_seconds) if self._saving.every_seconds else time.monotonic_ns()

    def read(self, name: str, like: PyTree) -> PyTree | None:
        """The state that was saved under a name, with the shapes and shardings of `like`; None: none was.

        Raises:
            InputError: it is damaged, or of another training.
        """
        folder = self.folder / name
        return orbax_checkpoint.restore(folder, like) if agree(orbax_checkpoint.exists(folder)) else None

    def save(self, period: int, states: Mapping[str, PyTree]) -> None:
        """Saves states by name, and before them those that wait."""
        with self._lock:
            self._saved_in = max(period, self._saved_in)
            for name, state in {**self._waiting, **states}.items():
                self._note()
                orbax_checkpoint.save(self.folder / name, state)
            self._waiting.clear()
        was_saved(self.folder)

    def save_later(self, name: str, state: PyTree) -> None:
        """Saves a state that stays as it is with the next one; now, where a save is due that did not come."""
        with self._lock:
            self._waiting[name] = state
            period = self.period()
            if agree(period > self._saved_in):
                self.save(period, {})

    def remove(self) -> None:
        """Removes all; called when the result is on disk."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self) -> None:
        """Writes beside the states what they are of, and the seconds until now."""
        if jax.process_index() == 0:
            assert self._start is not None
            self.folder.mkdir(parents=True, exist_ok=True)
            seconds = round(self.seconds_before + time.monotonic() - self._start, 2)
            about = {"identity": self._saving.identity, "devices": _devices(), "seconds": seconds}
            write_text(self.folder / ABOUT, json.dumps(about, indent=2) + "\n")

    def _check(self) -> None:
        """Looks whether what is there can be continued; removes what cannot, and says so."""
        identity, devices, why = self._saving.identity, _devices(), ""
        about = _read_about(self.folder / ABOUT)
        if about is not None:
            before = about.identity
            names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
            why = "; ".join(f"{name} {before.get(name)} before, {identity.get(name)} now" for name in names)
            self.seconds_before = 0.0 if why else about.seconds
        wait_for_all(f"looked at {self.folder.name}")
        if jax.process_index() != 0:
            return
        if about is None or why:
            shutil.rmtree(self.folder, ignore_errors=True)
        if why:
            print(f"{self.folder.stem}: begun anew, as its saved state is of another run: {why}", file=sys.stderr)
        elif about is not None and about.devices != devices:
            note = "its result may differ in the last bits"
            print(f"{self.folder.stem}: continues on {devices}, before on {about.devices}: {note}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _About:
    """What is written beside the states."""

    identity: dict[str, str]
    devices: str
    seconds: float


def _read_about(file: Path) -> _About | None:
    if not file.is_file():  # nothing was saved after it
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return _About(dict(about["identity"]), str(about["devices"]), float(about["seconds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{file}: the saved state cannot be read ({error}); remove {file.parent} to begin it anew"
        raise InputError(message) from error


def _devices() -> str:
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"
