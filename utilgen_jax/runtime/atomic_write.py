"""Writes files so that a reader finds the old or the new content, never a part of either.

New content goes to a hidden sibling, `.<name>.partial`, which then takes the place of the old file in one step. An
exception removes the sibling and leaves the old file. A killed process may leave the sibling; the next write of the
same file overwrites it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As Rust writes it, and TensorStore: "(os error 28)", "[os_error_code='28']".
_OS_ERROR = re.compile(r"os[ _]error(?:_code)?[ =']+(\d+)")


def write_text(path: Path, text: str, fsync: bool = False) -> None:
    """Replaces a text file, UTF-8. See `replace_file`."""
    write_bytes(path, text.encode(), fsync)


def write_bytes(path: Path, data: bytes, fsync: bool = False) -> None:
    """Replaces a file. See `replace_file`."""
    with replace_file(path, fsync) as partial:
        partial.write_bytes(data)


@contextmanager
def replace_file(path: Path, fsync: bool = False) -> Iterator[Path]:
    """Yields the path of a file to write; it replaces `path` at the end of the block.

    Args:
        path: the file; its folder exists.
        fsync: force the content to the disk before the replacement, so that it survives a power cut.
    """
    partial = _partial(path)
    try:
        with named_in_errors(path):
            partial.touch()
            mode = partial.stat().st_mode  # as the umask has it
            yield partial
            os.chmod(partial, mode)  # some writers, such as safetensors', make files for their owner alone
        if fsync:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it replaces `path` at the end of the block.

    The system cannot replace a folder in one step. Between the two steps `path` is missing, and the old content is in
    the sibling `.<name>.old`.

    Args:
        path: the folder; its parents are made.
    """
    partial, old = _partial(path), path.with_name(f".{path.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if path.is_dir():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        if old.is_dir() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Adds the path to an error of the system that lacks it, as that of a full disk.

    An error of the system that a library in Rust or C++ has met becomes an OSError.

    Args:
        path: what is written in the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def append_text(path: Path, text: str) -> None:
    """Appends text, UTF-8, and forces it to the disk. An interruption may leave a part: see `cut_partial_line`."""
    with named_in_errors(path), open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def cut_partial_line(path: Path) -> None:
    """Removes what follows a file's last line end: the part of a line that an interrupted `append_text` left."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
