"""Where a pool's images are: files of their own, or packed ones.

    <folder>/train-00002.tar               or .array_record: images 1024 to 1535 of the pool, in their order
    <folder>/train-00002.tar.parts/        those of them that have not been packed yet, as files of their own

The `file_name` of such an image is `train-00002.tar/00001025.png`, wherever it is at the moment.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utilgen_jax.errors import InputError
from utilgen_jax.pool.packed import IMAGES_IN_FILE, read_packed
from utilgen_jax.pool.records import METADATA, PoolRecord

PARTS = ".parts"
_PACKED = re.compile(r"(?:shard-\d{5}/)?train-(\d{5,})\.(?:tar|array_record)")


@dataclasses.dataclass(frozen=True)
class PoolFiles:
    """A pool's images, to be read at random.

    Attributes:
        paths: of each image's file, or of the packed file that it is in.
        numbers: of each image in its packed file, int [N]; -1: the file is the image.
    """

    paths: tuple[Path, ...]
    numbers: np.ndarray

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decodes images: uint8 [n, H, W, 3].

        Raises:
            InputError: an image cannot be decoded or has another size than the first of them.
        """
        images: list[np.ndarray] = []
        for path, number in ((self.paths[int(index)], int(self.numbers[index])) for index in indices):
            content = path if number < 0 else io.BytesIO(read_packed(path, number))
            where = f"{path}" if number < 0 else f"{path}, image {number}"
            try:
                with Image.open(content) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except Exception as error:  # On broken bytes Pillow's decoders raise nearly anything.
                raise InputError(f"{where}: the image cannot be decoded ({error}); generate the pool again") from error
            if images[-1].shape != images[0].shape:
                first = f"the first of the pool {images[0].shape[:2]}"
                raise InputError(f"{where} is {images[-1].shape[:2]} pixels, {first}")
        return np.stack(images)


def find_images(folder: Path, records: Sequence[PoolRecord]) -> PoolFiles:
    """Where the images of records are.

    Args:
        folder: the pool's.
        records: all of the pool, or all that a packed file has, in their order.

    Raises:
        InputError: one is missing, or lies outside the folder.
    """
    paths, numbers = [], np.full(len(records), -1)
    seen: Counter[str] = Counter()
    parts: dict[str, set[str]] = {}
    packed: dict[str, Path | None] = {}
    for place, record in enumerate(records):
        file = packed_file(record.file_name)
        if file is None:
            paths.append(_image_path(folder, record))
            continue
        if file not in parts:
            parts[file] = {path.name for path in (folder / f"{file}{PARTS}").glob("*")}
            packed[file] = folder / file if (folder / file).is_file() else None
        name = record.file_name.rpartition("/")[2]
        whole = packed[file]
        if name in parts[file]:
            paths.append(part_path(folder, record.file_name))
        elif whole is not None:
            paths.append(whole)
            numbers[place] = seen[file]
        else:
            raise InputError(f"{folder / file} is missing; remove the pool's folder to generate it again")
        seen[file] += 1
    return PoolFiles(tuple(paths), numbers)


def packed_name(suffix: str, place: int) -> str:
    """The `file_name` of an image that is to be packed, below the folder or shard."""
    return f"train-{place // IMAGES_IN_FILE:05d}.{suffix}/{place:08d}.png"


def packed_file(file_name: str) -> str | None:
    """The name of the packed file that an image is in, or will be; None where it has a file of its own."""
    file, _, _ = file_name.rpartition("/")
    return file if _PACKED.fullmatch(file) else None


def number_of(file: str) -> int:
    """The number of a packed file, from 0."""
    found = _PACKED.fullmatch(file)
    assert found is not None
    return int(found[1])


def part_path(folder: Path, file_name: str) -> Path:
    """Where an image lies until it is packed."""
    file, _, name = file_name.rpartition("/")
    return folder / f"{file}{PARTS}" / name


def _image_path(folder: Path, record: PoolRecord) -> Path:
    """The path of a record's image, which exists and lies below the folder."""
    path = folder / record.file_name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{folder / METADATA}: file_name {record.file_name!r} leaves the pool's folder")
    if not path.is_file():
        raise InputError(f"{path} is missing; remove the pool's folder to generate it again")
    return path
