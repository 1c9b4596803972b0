"""A run's folder in a bucket: the run works in a copy on this machine, which is saved to the bucket again and again.

A bucket renames nothing and replaces single objects alone, and a run may be killed at any moment. What is saved is
therefore a state of the whole folder, or nothing of it:

    <url>/...                        the files of the folder under their own names
    <url>/.saved/00000012.json       the names of all files of the newest state; it counts once this object is there
    <url>/.saved/new-TOKEN.json      names that are being written and that the newest state does not have
    <url>/.saved/00000013-TOKEN/...  files of a state that have taken, or will take, the place of older ones

New files are written under their own names, changed ones beside, then the list; then changed files are copied to their
names, and what is gone is removed. A run that starts anywhere finds the newest state, and what was cut off is completed
or removed before its own first save. Two runs in one folder are told: the one that started later goes on.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.buckets import cache_of, open_place, reached
from utilgen_jax.runtime.distributed import all_see, wait_for_all
from utilgen_jax.runtime.folder_lock import locked_folder
from utilgen_jax.runtime.notes import warn
from utilgen_jax.runtime.paths import is_in_bucket

SAVED = ".saved"
_STATE = re.compile(r"(\d{8})\.json")
# Beside hidden files what no finished state has: orbax's unfinished checkpoints.
_UNFINISHED = "orbax-checkpoint-tmp"
_PATIENCE = 60.0  # seconds to wait for another command that reads the same folder

_Stats = dict[str, tuple[int, int]]  # name -> size and time of the last change


class _State(NamedTuple):
    """What is saved.

    Attributes:
        run: a text by which a run's states are known.
        number: of the state, from 0.
        files: the names of all files.
        changed: of these, those that stand in `changed_in` until they have been copied to their names.
        changed_in: below the folder.
        gone: names that no file has any more.
        by: who saved it.
    """

    run: str
    number: int
    files: list[str]
    changed: list[str] = []
    changed_in: str = ""
    gone: list[str] = []
    by: str = ""


class Mirror:
    """A folder in a bucket and its copy on this machine.

    Attributes:
        url: in the bucket.
        folder: on this machine.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.folder = cache_of(url, "runs")
        self._place = open_place(url)
        self._note = self.folder.with_name("state.json")  # which state the copy is of, and the files as they were then
        self._state: _State | None = None
        self._stats: _Stats = {}
        self._token = secrets.token_hex(4)
        self._is_recovered = False
        self._saved_at = time.monotonic()
        self._lock = threading.Lock()  # threads may have something to save at once

    def fetch(self) -> None:
        """Makes the copy that of the newest state; one of this state is left as it is: it may be further.

        Raises:
            InputError: the bucket cannot be reached.
        """
        with reached(self.url):
            self._state = self._newest()
            if self._state is None and (others := self._place.names()) and "config.json" in others:
                # A run that was copied there by hand.
                self._state = _State("", -1, [name for name in others if not _is_hidden(name)])
            run, number, stats = self._read_note()
            if self._state is not None and (run, number) == (self._state.run, self._state.number):
                self._stats = stats
                return
            self._note.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            if self._state is None:
                return
            waiting = self._names_in(self._state.changed_in)
            files = self._state.files
            for name in files:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            sources = [self._place.path(waiting.get(name, name)) for name in files]
            self._place.files.get(sources, [str(self.folder / name) for name in files])
        found = _look(self.folder)
        self._stats = {name: found[name] for name in files}
        self._write_note()

    def claim(self) -> None:
        """Saves a state at once, by which a run that works in the same folder elsewhere ends with its next save."""
        with reached(self.url):
            self._save(even_if_same=True)

    def save(self, must: bool = False) -> None:
        """Saves the folder.

        Args:
            must: whether it is an error that the bucket cannot be reached; if not, it is told, and the next save tries
                again.

        Raises:
            InputError: another run works in the folder, or the bucket cannot be reached.
        """
        try:
            with reached(self.url):
                self._save()
        except _OtherRunError:
            raise
        except InputError as error:
            if must:
                raise InputError(
                    f"{error}. Not all is saved there; the same command on this machine does so"
                ) from error
            warn(f"{error}. The run goes on and tries again")

    def save_if_due(self, every_seconds: float) -> None:
        """Saves the folder where the last save is so many seconds ago."""
        if time.monotonic() - self._saved_at >= every_seconds:
            self.save()

    def _save(self, even_if_same: bool = False) -> None:
        with self._lock:
            self._save_alone(even_if_same)
            self._saved_at = time.monotonic()

    def _save_alone(self, even_if_same: bool) -> None:
        before = self._state
        known = set(before.files) if before else set()
        if not even_if_same and _look(self.folder) == self._stats:
            return
        self._check_newest()
        self._recover()
        number = before.number + 1 if before else 0
        changed_in = f"{SAVED}/{number:08d}-{self._token}"
        written: _Stats = {}  # as they were when they were written
        tried: set[str] = set()
        while True:
            found = _look(self.folder)
            to_write = [name for name, stat in found.items() if written.get(name, self._stats.get(name)) != stat]
            tried |= {*to_write}
            try:
                self._write(to_write, known, changed_in, tried - known)
            except FileNotFoundError:
                if all((self.folder / name).is_file() for name in to_write):
                    raise
                continue  # a file has gone since it was found
            written |= {name: found[name] for name in to_write}
            # A state is one at which all of its files were there at one time: threads may be saving others.
            if _look(self.folder).keys() == found.keys():
                break
        state = _State(
            run=before.run if before and before.run else secrets.token_hex(8),
            number=number,
            files=sorted(found),
            changed=sorted(name for name in written if name in known and name in found),
            changed_in=changed_in,
            gone=sorted((known | tried) - found.keys()),
            by=f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
        )
        try:
            text = json.dumps(state._asdict()).encode()
            self._place.files.pipe_file(self._place.path(f"{SAVED}/{number:08d}.json"), text, mode="create")
        except FileExistsError:
            self._check_newest()
            raise
        self._state = state
        self._stats = {name: written.get(name, self._stats.get(name, stat)) for name, stat in found.items()}
        self._write_note()
        self._complete(state)

    def _write(self, names: list[str], known: set[str], changed_in: str, new: Iterable[str]) -> None:
        """Writes files: new ones under their names, which are noted before, others beside."""
        self._place.files.pipe_file(self._place.path(f"{SAVED}/new-{self._token}.json"), json.dumps([*new]).encode())
        targets = [f"{changed_in}/{name}" if name in known else name for name in names]
        self._place.files.put([str(self.folder / name) for name in names], [self._place.path(name) for name in targets])

    def _complete(self, state: _State) -> None:
        """Copies a state's changed files to their names, and removes what belongs to no state."""
        files = self._place.files
        waiting = self._names_in(state.changed_in)
        if changed := [name for name in state.changed if name in waiting]:
            sources = [self._place.path(waiting[name]) for name in changed]
            files.copy(sources, [self._place.path(name) for name in changed])
        self._remove(state.gone)
        kept = f"{SAVED}/{state.number:08d}.json"
        self._remove(name for name in self._place.names(SAVED) if name != kept)

    def _recover(self) -> None:
        """Completes the newest state, and removes what was written of one that did not come to be; once."""
        if self._is_recovered:
            return
        if self._state is not None:
            kept = set(self._state.files)
            for note in self._place.names(SAVED):
                if note.startswith(f"{SAVED}/new-"):
                    with suppress(ValueError):  # cut off before anything was written
                        names = json.loads(self._place.files.cat_file(self._place.path(note)))
                        self._remove(name for name in names if name not in kept)
            if self._state.number >= 0:
                self._complete(self._state)
        self._is_recovered = True

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self._place.files.rm_file(self._place.path(name))

    def _names_in(self, folder: str) -> dict[str, str]:
        """{name below the folder: name below the place}."""
        return {name.removeprefix(f"{folder}/"): name for name in self._place.names(folder)} if folder else {}

    def _newest(self) -> _State | None:
        names = sorted(name for name in self._names_in(SAVED) if _STATE.fullmatch(name))
        for name in reversed(names):
            with suppress(ValueError, TypeError):  # cut off, where a file is not written in one piece
                return _State(**json.loads(self._place.files.cat_file(self._place.path(f"{SAVED}/{name}"))))
        return None

    def _check_newest(self) -> None:
        """Raises InputError where another run has saved."""
        newest, own = self._newest(), self._state
        if newest is not None and (own is None or (newest.run, newest.number) != (own.run, own.number)):
            raise _OtherRunError(
                f"{self.url} is in use by another run ({newest.by}); wait for it, or take another folder"
            )

    def _read_note(self) -> tuple[str, int, _Stats]:
        try:
            note = json.loads(self._note.read_text())
            return note["run"], note["number"], {name: tuple(stat) for name, stat in note["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return "", -2, {}

    def _write_note(self) -> None:
        assert self._state is not None
        note: dict[str, Any] = {"run": self._state.run, "number": self._state.number, "files": self._stats}
        write_text(self._note, json.dumps(note))


class _OtherRunError(InputError):
    """Another run works in the folder."""


def _look(folder: Path) -> _Stats:
    """The files of a folder that belong to a state."""
    found = {}
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and _UNFINISHED not in name]
        for name in names:
            if not name.startswith("."):
                file = Path(path, name)
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    found[file.relative_to(folder).as_posix()] = stat.st_size, stat.st_mtime_ns
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


_mirrors: list[Mirror] = []  # of the runs that are under way in this process


@contextmanager
def working_folder(workdir: str | Path, claims: bool = True) -> Iterator[Path]:
    """The folder in which a run works; of one in a bucket its copy, which is saved at the end of the block.

    `was_saved` saves it before. Messages of InputErrors name the folder in the bucket.

    Args:
        workdir: a folder, or one in a bucket.
        claims: whether a run that works in the bucket's folder elsewhere is to end; False for who only reads.

    Raises:
        InputError: the bucket cannot be reached, or processes on several machines share the run.
    """
    if not is_in_bucket(str(workdir)):
        yield Path(workdir)
        return
    mirror = Mirror(str(workdir))
    with _named(mirror), ExitStack() as stack:
        if is_first := jax.process_index() == 0:
            lock = locked_folder(mirror.folder.parent, patience=0.0 if claims else _PATIENCE)
            stack.enter_context(lock)
            mirror.fetch()
            if claims:
                mirror.claim()
            else:
                stack.close()
        wait_for_all("the copy of the workdir is there")
        if not all_see(mirror.folder.with_name("seen")):
            raise InputError(
                f"--workdir: {workdir}: several machines cannot share a copy; give a folder that all of them see, "
                "such as the share of launch/README.md"
            )
        _mirrors.append(mirror)
        must = False
        try:
            yield mirror.folder
            must = True
        finally:
            _mirrors.remove(mirror)
            if is_first:
                with locked_folder(mirror.folder.parent, patience=_PATIENCE):
                    mirror.save(must)


@contextmanager
def _named(mirror: Mirror) -> Iterator[None]:
    """Puts the folder in the bucket in place of the copy in messages of InputErrors."""
    try:
        yield
    except InputError as error:
        message = str(error).replace(str(mirror.folder), mirror.url).replace(str(mirror.folder.parent), mirror.url)
        raise InputError(message) from error


def was_saved(folder: Path, every_seconds: float = 0.0) -> None:
    """Saves to its bucket what lies in a run's folder, if that is one's copy; called where a run can be continued.

    Args:
        folder: of the run, or below it.
        every_seconds: nothing is done where the last save is not so long ago.
    """
    for mirror in _mirrors:
        if folder.is_relative_to(mirror.folder) and jax.process_index() == 0:
            mirror.save_if_due(every_seconds)


def shown(path: Path) -> str:
    """A path as a person knows it: that in the bucket of what lies in the copy of a run's folder."""
    for mirror in _mirrors:
        if path.is_relative_to(mirror.folder):
            return f"{mirror.url}/{path.relative_to(mirror.folder).as_posix()}".removesuffix("/.")
    return str(path)
