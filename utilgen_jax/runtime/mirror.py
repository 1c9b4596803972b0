"""A run's folder in a bucket: the run works in a copy on this machine, which is saved to the bucket again and again.

A bucket renames nothing and replaces single objects alone, and a run may be killed at any moment. What is saved is
therefore a state of the whole folder, or nothing of it:

    <url>/...                        the files of the folder under their own names
    <url>/.saved/00000012.json       the names of all files of the newest state; it counts once this object is there
    <url>/.saved/new-TOKEN-0.json    names that a process is writing and that the newest state does not have
    <url>/.saved/part-TOKEN-1.json   what a process other than the first has written of the state to come
    <url>/.saved/00000013-TOKEN/...  files of a state that have taken, or will take, the place of older ones

New files are written under their own names, changed ones beside, then the list; then changed files are copied to their
names, and what is gone is removed. A run that starts anywhere finds the newest state, and what was cut off is completed
or removed before its own first save. Two runs in one folder are told: the one that started later goes on.

Processes that share no disk have a copy each. They save together: each writes the files that are its own, see
`distributed.writer_of`, and the first one the list. Then each can take what the others have written.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.buckets import below, cache_of, open_place, reached
from utilgen_jax.runtime.distributed import agree, agree_on, is_any, wait_for_all, writer_of
from utilgen_jax.runtime.notes import warn

SAVED = ".saved"
_STATE = "????????.json"
# Beside hidden files what no finished state has: orbax's unfinished checkpoints.
_UNFINISHED = "orbax-checkpoint-tmp"

_Stats = dict[str, tuple[int, int]]  # name -> size and time of the last change


class _State(NamedTuple):
    """What is saved.

    Attributes:
        run: a text by which a run's states are known.
        number: of the state, from 0.
        files: the names of all files, and for each the number of the state with which it was written.
        changed: of these, those that stand in `changed_in` until they have been copied to their names.
        changed_in: below the folder.
        gone: names that no file has any more.
        by: who saved it.
    """

    run: str
    number: int
    files: dict[str, int]
    changed: list[str] = []
    changed_in: str = ""
    gone: list[str] = []
    by: str = ""


class _Part(NamedTuple):
    """A process's part of a state: the names of its files, of those it has written, and of new ones it has tried to."""

    files: list[str]
    written: list[str]
    tried: list[str]


class _Copy(NamedTuple):
    """What is known of a copy: the state that it is of, and its files.

    Attributes:
        run, number: of the state; the number -2 is none's.
        is_one_of_several: of processes that share no disk. By itself it is then no whole state, once it is changed.
        stats: of the files that are as they are in the bucket.
        numbers: of these, those of `_State.files`.
    """

    run: str = ""
    number: int = -2
    is_one_of_several: bool = False
    stats: _Stats = {}
    numbers: dict[str, int] = {}


class Mirror:
    """A folder in a bucket and its copy on this machine.

    Attributes:
        url: in the bucket.
        folder: on this machine.
        is_one_of_several: whether other processes have copies of their own. All of them then call each method but
            `fetch` at the same place.

    Args:
        url: in the bucket.
        process: the number of this process among those that have copies of their own.
        processes: how many these are.
    """

    def __init__(self, url: str, process: int = 0, processes: int = 1) -> None:
        self.url = url.rstrip("/")
        self.folder = cache_of(url, "runs", process=process)
        self.is_one_of_several = processes > 1
        self._process, self._processes = process, processes
        self._place = open_place(url)
        self._note = self.folder.with_name("state.json")
        self._state: _State | None = None
        self._copy = _Copy()
        self._token = secrets.randbelow(2**31)
        self._is_recovered = False
        self._saved_at = time.monotonic()
        self._lock = threading.Lock()  # threads may have something to save at once

    def fetch(self) -> None:
        """Makes the copy that of the newest state; one of this state is left as it is: it may be further.

        A copy of one of several processes is made exactly that: alone it is no whole state that may be continued.

        Raises:
            InputError: the bucket cannot be reached.
        """
        with reached(self.url):
            self._state = self._newest()
            if self._state is None and (others := self._place.names()) and "config.json" in others:
                # A run that was copied there by hand.
                self._state = _State("", -1, {name: -1 for name in others if not _is_hidden(name)})
            state, copy = self._state, self._read_note()
            is_whole = not (copy.is_one_of_several or self.is_one_of_several)
            if state is not None and is_whole and (copy.run, copy.number) == (state.run, state.number):
                self._copy = copy
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            files, found = state.files if state else {}, _look(self.folder)
            is_of_run = state is not None and state.run == copy.run != ""
            kept = {
                name
                for name, number in files.items()
                if is_of_run and copy.numbers.get(name) == number and found.get(name, ()) == copy.stats[name]
            }
            _remove_from(self.folder, lambda name: name not in kept)
            self._get([name for name in files if name not in kept])
        if state is not None:
            found = _look(self.folder)
            self._note_copy({name: found[name] for name in files}, files)

    def claim(self) -> None:
        """Saves a state at once, by which a run that works in the same folder elsewhere ends with its next save."""
        with reached(self.url), self._lock:
            self._save(even_if_same=True)

    def save(self, must: bool = False, takes: bool = False) -> None:
        """Saves the folder.

        Args:
            must: whether it is an error that the bucket cannot be reached; if not, it is told, and the next save tries
                again. For one of several processes it always is.
            takes: whether to bring the copy what other processes have written.

        Raises:
            InputError: another run works in the folder, or the bucket cannot be reached.
        """
        try:
            with reached(self.url), self._lock:
                self._save()
                if takes and self.is_one_of_several:
                    self._take()
        except _OtherRunError:
            raise
        except InputError as error:
            if self.is_one_of_several:
                raise InputError(f"{error}. The same command goes on from what is saved there") from error
            if must:
                raise InputError(
                    f"{error}. Not all is saved there; the same command on this machine does so"
                ) from error
            warn(f"{error}. The run goes on and tries again")

    def save_if_due(self, every_seconds: float) -> None:
        """Saves the folder where the last save is so many seconds ago."""
        is_due = time.monotonic() - self._saved_at >= every_seconds
        if agree(is_due) if self.is_one_of_several else is_due:
            self.save()

    def _save(self, even_if_same: bool = False) -> None:
        known = {name: stat for name, stat in self._copy.stats.items() if self._is_own(name)}
        if self._is_any(even_if_same or self._look() != known):
            self._save_changes()
        self._saved_at = time.monotonic()

    def _save_changes(self) -> None:
        before = self._state
        if self._process == 0:
            self._check_newest()
            self._recover()
        # What is cut off from here on is removed by the next run.
        number = self._agree_on(before.number + 1 if before else 0)
        if number != (before.number + 1 if before else 0):
            raise _OtherRunError(f"{self.url} is in use by another run, which has just saved; wait for it")
        token = f"{self._agree_on(self._token):08x}"
        known = set(before.files) if before else set()
        changed_in = f"{SAVED}/{number:08d}-{token}"
        found, written, tried = self._write_changes(known, changed_in, token)
        part = _Part(sorted(found), sorted(written.keys() & found.keys()), sorted(tried))
        if parts := self._gather(part, token):
            was = before.files if before else {}
            files = {name: was.get(name, number) for each in parts for name in each.files}
            files |= {name: number for each in parts for name in each.written}
            state = _State(
                run=before.run if before and before.run else secrets.token_hex(8),
                number=number,
                files=dict(sorted(files.items())),
                changed=sorted(known & {name for each in parts for name in each.written}),
                changed_in=changed_in,
                gone=sorted((known | {name for each in parts for name in each.tried}) - files.keys()),
                by=f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
            )
            self._publish(state)
            self._note_saved(state, found, written)
            self._complete(state)
            self._wait("a state is saved")
        else:
            self._wait("a state is saved")
            self._note_saved(self._read_state(f"{number:08d}.json"), found, written)

    def _write_changes(self, known: set[str], changed_in: str, token: str) -> tuple[_Stats, _Stats, set[str]]:
        """Writes what has changed of this process's files: these, those written, and the new names among them."""
        written: _Stats = {}  # as they were when they were written
        tried: set[str] = set()
        while True:
            found = self._look()
            to_write = [name for name, stat in found.items() if written.get(name, self._copy.stats.get(name)) != stat]
            tried |= {*to_write} - known
            self._pipe(f"new-{token}-{self._process}.json", sorted(tried))
            try:
                self._write(to_write, known, changed_in)
            except FileNotFoundError:
                if all((self.folder / name).is_file() for name in to_write):
                    raise
                continue  # a file has gone since it was found
            written |= {name: found[name] for name in to_write}
            # A state is one at which all of its files were there at one time: threads may be saving others.
            if self._look().keys() == found.keys():
                return found, written, tried

    def _write(self, names: list[str], known: set[str], changed_in: str) -> None:
        """Writes files: new ones under their names, others beside."""
        targets = [f"{changed_in}/{name}" if name in known else name for name in names]
        self._place.files.put([str(self.folder / name) for name in names], [self._place.path(name) for name in targets])

    def _gather(self, part: _Part, token: str) -> list[_Part]:
        """All processes' parts, in the first one; none in the others."""
        if self._process > 0:
            self._pipe(f"part-{token}-{self._process}.json", part)
        self._wait("the files of a state are written")
        if self._process > 0:
            return []
        others = range(1, self._processes)
        return [part, *(_Part(*self._read(f"part-{token}-{process}.json")) for process in others)]

    def _publish(self, state: _State) -> None:
        try:
            self._pipe(f"{state.number:08d}.json", state._asdict(), mode="create")
        except FileExistsError:
            self._check_newest()
            raise

    def _note_saved(self, state: _State, found: _Stats, written: _Stats) -> None:
        """Notes what the copy is now known to have as the bucket has it."""
        self._state = state
        stats = {name: stat for name, stat in self._copy.stats.items() if not self._is_own(name)}
        stats |= {name: written.get(name, self._copy.stats.get(name, stat)) for name, stat in found.items()}
        own = {name: state.files[name] for name in found}
        others = {name: number for name, number in self._copy.numbers.items() if not self._is_own(name)}
        self._note_copy(stats, {**others, **own})

    def _take(self) -> None:
        """Brings the copy what other processes have written, and removes what they have removed."""
        if self._state is None:
            return
        files = self._state.files
        found = _look(self.folder)
        _remove_from(self.folder, lambda name: not (name in files or _is_left_alone(name) or self._is_own(name)))
        stale = [
            name
            for name, number in files.items()
            if not self._is_own(name) and (name not in found or self._copy.numbers.get(name) != number)
        ]
        self._get(stale)
        found = _look(self.folder)
        stats = {name: stat for name, stat in self._copy.stats.items() if name in files}
        numbers = {name: number for name, number in self._copy.numbers.items() if name in files}
        self._note_copy(stats | {name: found[name] for name in stale}, numbers | {name: files[name] for name in stale})

    def _get(self, names: list[str]) -> None:
        """Copies files of the newest state to this machine."""
        if not names:
            return
        assert self._state is not None
        waiting = self._names_in(self._state.changed_in)
        targets = [below(self.folder, name) for name in names]
        for folder in {target.parent for target in targets}:
            folder.mkdir(parents=True, exist_ok=True)
        sources = [self._place.path(waiting.get(name, name)) for name in names]
        self._place.files.get(sources, [str(target) for target in targets])

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
            for note in self._names_in(SAVED):
                if note.startswith("new-"):
                    with suppress(ValueError):  # cut off before anything was written
                        self._remove(name for name in self._read(note) if name not in self._state.files)
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

    def _pipe(self, name: str, content: Any, **options: str) -> None:
        """Writes a note beside the states."""
        self._place.files.pipe_file(self._place.path(f"{SAVED}/{name}"), json.dumps(content).encode(), **options)

    def _read(self, name: str) -> Any:
        return json.loads(self._place.files.cat_file(self._place.path(f"{SAVED}/{name}")))

    def _read_state(self, name: str) -> _State:
        self._place.files.invalidate_cache()
        return _State(**self._read(name))

    def _newest(self) -> _State | None:
        names = sorted(name for name in self._names_in(SAVED) if Path(name).match(_STATE) and "/" not in name)
        for name in reversed(names):
            with suppress(ValueError, TypeError):  # cut off, where a file is not written in one piece
                return self._read_state(name)
        return None

    def _check_newest(self) -> None:
        """Raises InputError where another run has saved."""
        newest, own = self._newest(), self._state
        if newest is not None and (own is None or (newest.run, newest.number) != (own.run, own.number)):
            raise _OtherRunError(
                f"{self.url} is in use by another run ({newest.by}); wait for it, or take another folder"
            )

    def _is_own(self, name: str) -> bool:
        return not self.is_one_of_several or writer_of(name, self._processes) == self._process

    def _look(self) -> _Stats:
        """The files of the folder that this process saves."""
        return {name: stat for name, stat in _look(self.folder).items() if self._is_own(name)}

    def _is_any(self, value: bool) -> bool:
        return is_any(value) if self.is_one_of_several else value

    def _agree_on(self, number: int) -> int:
        return agree_on(number) if self.is_one_of_several else number

    def _wait(self, name: str) -> None:
        if self.is_one_of_several:
            wait_for_all(name)

    def _read_note(self) -> _Copy:
        try:
            note = _Copy(**json.loads(self._note.read_text()))
            return note._replace(stats={name: (size, changed) for name, (size, changed) in note.stats.items()})
        except (OSError, ValueError, TypeError):
            return _Copy()

    def _note_copy(self, stats: _Stats, numbers: dict[str, int]) -> None:
        assert self._state is not None
        self._copy = _Copy(self._state.run, self._state.number, self.is_one_of_several, stats, numbers)
        write_text(self._note, json.dumps(self._copy._asdict()))


class _OtherRunError(InputError):
    """Another run works in the folder."""


def _look(folder: Path) -> _Stats:
    """The files of a folder that belong to a state."""
    found = {}
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_left_alone(name)]
        for name in names:
            if not _is_left_alone(name):
                file = Path(path, name)
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    found[file.relative_to(folder).as_posix()] = stat.st_size, stat.st_mtime_ns
    return found


def _remove_from(folder: Path, is_superfluous: Callable[[str], bool]) -> None:
    """Removes files from a folder, by their names below it, and the folders that are empty then."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            if is_superfluous(Path(path, name).relative_to(folder).as_posix()):
                Path(path, name).unlink(missing_ok=True)
        if Path(path) != folder and not os.listdir(path):
            os.rmdir(path)


def _is_left_alone(name: str) -> bool:
    """Whether a file belongs to no state."""
    return _is_hidden(name) or _UNFINISHED in name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
