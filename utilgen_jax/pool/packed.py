"""Files that hold many images each: tar files, as webdataset reads them, and ArrayRecord files."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utilgen_jax.errors import InputError, line_of
from utilgen_jax.runtime.atomic_write import replace_file

IMAGES_IN_FILE = 512
_READERS = 64  # open at once in a thread


class Entry(NamedTuple):
    """An image in a file.

    Attributes:
        key: its name there.
        png: the image.
        label: its class.
        about: what else is known, as JSON has it.
    """

    key: str
    png: bytes
    label: int
    about: Mapping[str, Any]


def write_tar(path: Path, entries: Iterable[Entry]) -> None:
    """Writes a tar file, whole or not at all: of each image `KEY.png`, `KEY.cls` and `KEY.json`."""
    with replace_file(path, fsync=True) as partial, tarfile.open(partial, "w") as tar:
        for entry in entries:
            about = json.dumps(entry.about, ensure_ascii=False, allow_nan=False).encode()
            members = {"png": entry.png, "cls": str(entry.label).encode(), "json": about}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{entry.key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file, whole or not at all, each record readable by itself."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with replace_file(path, fsync=True) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()


class PackedFormat(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of its name, without the dot.
        write: (path, entries) -> writes the file, whole or not at all.
        read: (path, number in the file) -> the PNG file of an image.
        count: path -> images in the file.
    """

    suffix: str
    write: Callable[[Path, Sequence[Entry]], None]
    read: Callable[[Path, int], bytes]
    count: Callable[[Path], int]


def read_packed(path: Path, number: int) -> bytes:
    """The PNG file of an image.

    Args:
        path: of the file that it is in.
        number: of the image in the file, from 0.

    Raises:
        InputError: the file is damaged, or has too few images.
    """
    try:
        return _BY_SUFFIX[path.suffix[1:]].read(path, number)
    except Exception as error:  # tarfile's, of its decoders, or a RuntimeError
        raise InputError(
            f"{path}: image {number} cannot be read ({line_of(error)}); generate the pool again"
        ) from error


def format_of(path: Path) -> PackedFormat:
    """The format of a file, by its name."""
    return _BY_SUFFIX[path.suffix[1:]]


def _changed(path: Path) -> tuple[int, int]:
    """What is another one once the file has been replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _tar_images(path: Path, changed: tuple[int, int]) -> np.ndarray:
    """Where the images of a tar file are: offset and size, int64 [n, 2]."""
    with tarfile.open(path) as tar:
        found = [(member.offset_data, member.size) for member in tar if member.name.endswith(".png")]
    return np.array(found, np.int64).reshape(-1, 2)


def _read_tar(path: Path, number: int) -> bytes:
    offset, size = _tar_images(path, _changed(path))[number].tolist()
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=_READERS)
def _reader(path: Path, changed: tuple[int, int], used_by: tuple[int, int]) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise ValueError("no ArrayRecord file, or a part of one")
    return reader


def _array_record(path: Path) -> Any:
    return _reader(path, _changed(path), (os.getpid(), threading.get_ident()))


PACKED_FORMATS = {
    "webdataset": PackedFormat("tar", write_tar, _read_tar, lambda path: len(_tar_images(path, _changed(path)))),
    "arrayrecord": PackedFormat(
        "array_record",
        lambda path, entries: write_array_record(path, (entry.png for entry in entries)),
        lambda path, number: _array_record(path).read([number])[0],
        lambda path: _array_record(path).num_records(),
    ),
}
_BY_SUFFIX = {each.suffix: each for each in PACKED_FORMATS.values()}
