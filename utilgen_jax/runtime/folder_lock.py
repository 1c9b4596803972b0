"""A lock of a folder, for one process at a time, that ends with the process which holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import named_in_errors
from utilgen_jax.runtime.notes import warn

LOCK = ".lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_held: set[str] = set()  # folders that this process has locked


@contextmanager
def locked_folder(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder, which is made; a process may hold it several times.

    Args:
        folder: to lock.
        patience: seconds to wait for another process that holds it.

    Raises:
        InputError: another process holds it; says which, on what machine, and since when.
    """
    name = os.path.realpath(folder)
    if name in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = _acquire_in(folder, patience)
    _held.add(name)
    try:
        yield
    finally:
        _held.discard(name)
        # Removed before it is released: who waits for it then finds another file, or none, and looks again.
        (folder / LOCK).unlink(missing_ok=True)
        os.close(file)


def check_unlocked(folder: Path) -> None:
    """Raises InputError where another process holds the lock; makes and writes nothing."""
    if os.path.realpath(folder) in _held or not (folder / LOCK).is_file():
        return
    file = os.open(folder / LOCK, os.O_RDONLY)
    try:
        _lock(file, folder, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _acquire_in(folder: Path, patience: float) -> int:
    last = time.monotonic() + patience
    while True:
        try:
            return _acquire(folder)
        except InputError:
            if time.monotonic() >= last:
                raise
            time.sleep(0.2)


def _acquire(folder: Path) -> int:
    """Locks the folder's file, which is made; returns its descriptor."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, folder, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                _write_holder(file, path)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # of one who has just ended


def _write_holder(file: int, path: Path) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        with named_in_errors(path):
            os.truncate(file, 0)
            os.write(file, json.dumps(holder).encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _lock(file: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(os.pread(file, 1000, 0))
        raise InputError(f"{folder} is in use by another run ({holder}); wait for it, or take another folder") from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        warn(f"{folder}: its file system has no locks; two runs in one folder would damage each other")


def _holder(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has not been written yet
        return "started just now"
