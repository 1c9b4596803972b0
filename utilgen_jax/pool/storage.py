"""The synthetic pool on disk: a folder that a person can open and any reader of image folders can read.

    <folder>/<class>/00012.png      the image; the number counts through the whole pool
    <folder>/metadata.jsonl         one line an image, the fields of `PoolRecord`
    <folder>/shard-00003/...        the same of each process, where several write; the number counts through all shards

In place of files of their own, images can be in packed ones, see `files`.

An image belongs to the pool once its line in metadata.jsonl is complete; images are written first, their lines
after. Work that was cut off leaves at most images without a line and half a line, which the next `PoolWriter`
removes, and images that are not packed, which it packs. Only metadata.jsonl and packed files are forced to the disk:
after a power cut `read_pool` names images that did not reach it.
"""

import dataclasses
import io
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.data.streamed_images import IN_MEMORY, Images, Reading
from utilgen_jax.errors import InputError
from utilgen_jax.pool.files import PARTS, find_images, number_of, packed_file, packed_name, part_path
from utilgen_jax.pool.packed import IMAGES_IN_FILE, PACKED_FORMATS, Entry, format_of, read_packed
from utilgen_jax.pool.records import (
    FIELDS,
    METADATA,
    PoolRecord,
    class_folders,
    metadata_files,
    place_of,
    read_records,
    to_line,
    write_records,
)
from utilgen_jax.runtime.atomic_write import append_text, cut_partial_line, write_bytes
from utilgen_jax.runtime.distributed import shard_name

# Images of `PoolWriter`, whole or partial; other files in the folder are never removed.
_IMAGE_FILE = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.partial")
_PACKED_FILES = "train-*.*"
# What a packed image says of itself: nothing that is learnt of it later.
_KNOWN_AT_ONCE = ("class_name", "prompt", "seed", "requested_difficulty", "round", "word", "conditioned_on")


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool: images uint8 [N, H, W, 3], in memory or to be streamed, labels int32 [N], and the N records."""

    images: Images
    labels: np.ndarray
    records: tuple[PoolRecord, ...]

    def first(self, number: int) -> "Pool":
        """The pool of its first images."""
        return Pool(self.images[:number], self.labels[:number], self.records[:number])


class PoolWriter:
    """Adds images to a pool folder, and continues one that was cut off.

    `len(writer)` images are safely there, the first ones of the pool; a caller whose images depend on
    their position alone goes on from that position and gets the pool that an unbroken run would have written.
    """

    def __init__(
        self, folder: str | Path, class_names: Sequence[str], shard: int | None = None, image_format: str = "png"
    ) -> None:
        """Opens or makes the folder, and removes what an interrupted `append` left.

        Args:
            folder: The pool's folder.
            class_names: K words.
            shard: Of this process, where several write; None: it writes alone.
            image_format: Of its images: "png", or a key of `PACKED_FORMATS`.

        Raises:
            InputError: The folder holds a pool of other classes, a damaged one, or one that lacks an image.
        """
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        self._class_folders = class_folders(self.class_names)
        self._shard = "" if shard is None else shard_name(shard)
        self._packed = PACKED_FORMATS.get(image_format)
        (self.folder / self._shard).mkdir(parents=True, exist_ok=True)
        (self.folder / self._shard / METADATA).touch()
        records = read_records(self.folder, self.class_names)
        find_images(self.folder, records)
        files = metadata_files(self.folder)
        for file in files:
            cut_partial_line(file)
        whole = self._cut_at_first_gap(records) if len(files) > 1 else records
        self._remove_orphans({record.file_name for record in whole}, files)
        self._pack_leftovers(whole, is_cut=len(whole) < len(records))
        self._count = len(whole)

    def __len__(self) -> int:
        """Images in the pool."""
        return self._count

    def append(self, images: np.ndarray, records: Sequence[PoolRecord], places: np.ndarray | None = None) -> None:
        """Writes images, then commits their records.

        Args:
            images: float [B, H, W, 3] in [-1, 1]; values beyond are clipped.
            records: B records; `file_name` and `class_name` are filled in here.
            places: Of the images in the pool, rising, int [B]; None: those that follow.

        Raises:
            ValueError: The shapes do not fit, a value is not finite, or a label is not one of the classes.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(records):
            raise ValueError(f"images {images.shape} should be [{len(records)}, H, W, 3], one for each record")
        if not np.isfinite(images).all():
            raise ValueError("a generated image holds NaN or infinity")
        if any(not 0 <= record.label < len(self.class_names) for record in records):
            raise ValueError(f"a label is outside 0..{len(self.class_names) - 1}")
        if not len(records):
            return
        numbers = np.arange(self._count, self._count + len(records)) if places is None else places
        base = f"{self._shard}/" if self._shard else ""
        named = [
            dataclasses.replace(
                record,
                file_name=base + self._name(record, number),
                class_name=self.class_names[record.label],
            )
            for number, record in zip(numbers.tolist(), records, strict=True)
        ]
        lines = "".join(to_line(record) for record in named)  # Before any file: a value JSON cannot hold raises here.
        for pixels, record in zip(to_uint8(images), named, strict=True):
            path = self._path(record)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _to_png(pixels))
        append_text(self.folder / self._shard / METADATA, lines)
        self._count = int(numbers[-1]) + 1
        if self._packed is not None:
            self._add_unpacked(named)
            self._pack(before=self._count // IMAGES_IN_FILE)

    def finish(self) -> None:
        """Packs what is not packed yet; more images may come."""
        self._pack(before=self._count)

    def _name(self, record: PoolRecord, number: int) -> str:
        if self._packed is not None:
            return packed_name(self._packed.suffix, number)
        return f"{self._class_folders[record.label]}/{number:05d}.png"

    def _path(self, record: PoolRecord) -> Path:
        is_packed = packed_file(record.file_name) is not None
        return part_path(self.folder, record.file_name) if is_packed else self.folder / record.file_name

    def _add_unpacked(self, records: Sequence[PoolRecord]) -> None:
        for record in records:
            file = packed_file(record.file_name)
            assert file is not None
            self._growing.setdefault(file, []).append(record)

    def _pack(self, before: int) -> None:
        """Packs the files of this shard up to a number; those that may still grow are kept in mind."""
        for file, records in list(self._growing.items()):
            if number_of(file) < before:
                pack(self.folder, file, records)
            if number_of(file) < self._count // IMAGES_IN_FILE:
                del self._growing[file]

    def _pack_leftovers(self, records: Sequence[PoolRecord], is_cut: bool) -> None:
        """Packs what was cut off before it was, in all shards, and repacks what holds more images than it should."""
        by_file: dict[str, list[PoolRecord]] = {}
        for record in records:
            if file := packed_file(record.file_name):
                by_file.setdefault(file, []).append(record)
        for file, of_file in by_file.items():
            path = self.folder / file
            if (self.folder / f"{file}{PARTS}").is_dir() or (is_cut and format_of(path).count(path) > len(of_file)):
                pack(self.folder, file, of_file)
        last = len(records) // IMAGES_IN_FILE
        own = {file: found for file, found in by_file.items() if file.rpartition("/")[0] == self._shard}
        self._growing = {file: found for file, found in own.items() if number_of(file) >= last}

    def _cut_at_first_gap(self, records: list[PoolRecord]) -> list[PoolRecord]:
        """Leaves out, on disk too, what follows the first image that is missing in the shard of another process."""
        places = np.array([place_of(record) for record in records])
        gaps = np.flatnonzero(places != np.arange(len(records)))
        kept = records[: gaps[0]] if len(gaps) else records
        if len(kept) < len(records):
            write_records(self.folder, kept)
        return kept

    def _remove_orphans(self, committed: set[str], metadata: Sequence[Path]) -> None:
        for class_folder in (file.parent / name for file in metadata for name in self._class_folders):
            for path in class_folder.glob("*"):
                name = path.relative_to(self.folder).as_posix()
                if _IMAGE_FILE.fullmatch(path.name) and name not in committed:
                    path.unlink(missing_ok=True)
        packed = {packed_file(name) for name in committed}
        for path in (path for file in metadata for path in file.parent.glob(_PACKED_FILES)):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                file = name.removesuffix(PARTS)
                for part in path.glob("*"):
                    if f"{file}/{part.name}" not in committed:
                        part.unlink()
                if file not in packed:
                    path.rmdir()
            elif name not in packed and packed_file(f"{name}/"):
                path.unlink()
        for partial in (path for file in metadata for path in file.parent.glob(f".{_PACKED_FILES}.partial")):
            partial.unlink()


def read_pool(folder: str | Path, class_names: Sequence[str] | None = None, reading: Reading = IN_MEMORY) -> Pool:
    """Reads a pool whole, checking everything; of images to be streamed, that they are there.

    Args:
        folder: The pool's folder.
        class_names: K words that labels and class names must agree with; None: only with each other.
        reading: what is held in memory.

    Returns:
        The pool, in the order of its metadata.

    Raises:
        InputError: No pool, a damaged line, an image that is missing, lies outside the folder, cannot be decoded or
            has another size than the first, or a label that is no class.
    """
    folder = Path(folder)
    records = read_records(folder, None if class_names is None else tuple(class_names))
    if not records:
        raise InputError(f"{folder}: the pool is empty")
    files = find_images(folder, records)
    images = reading.images(files, np.arange(len(records)), files.read([0]).shape[1:])
    return Pool(images, np.array([record.label for record in records], np.int32), tuple(records))


def update_records(folder: str | Path, **columns: Sequence[Any] | np.ndarray) -> None:
    """Replaces fields of all records at once; each metadata.jsonl is the old or the new one at any time.

    All processes call this; each writes the lines of its own shard, the first one all others.

    Args:
        folder: The pool's folder.
        **columns: Field of `PoolRecord` -> N values, e.g. weight=float [N] or soft_label=float [N, K].

    Raises:
        InputError: The pool is damaged.
        ValueError: A column is no field that may change, has another length, or a value that is not finite.
    """
    folder = Path(folder)
    records = read_records(folder, None)
    for name, column in columns.items():
        if name not in FIELDS or name in ("label", "file_name", "class_name"):
            raise ValueError(f"{name!r} is not a field of a pool's records that can be replaced")
        if len(column) != len(records):
            raise ValueError(f"column {name!r} has {len(column)} values for {len(records)} images")
        values = column.tolist() if isinstance(column, np.ndarray) else column
        records = [dataclasses.replace(record, **{name: value}) for record, value in zip(records, values, strict=True)]
    write_records(folder, records, own_alone=True)


def pack(folder: Path, file: str, records: Sequence[PoolRecord]) -> None:
    """Writes a packed file, of images that lie beside it or are in it already; does nothing where they all are.

    Args:
        folder: the pool's.
        file: name of the packed file.
        records: of all its images, in their order.
    """
    parts, found = folder / f"{file}{PARTS}", find_images(folder, records)
    path = folder / file
    if not parts.is_dir() and format_of(path).count(path) == len(records):
        return
    entries = [
        Entry(
            key=Path(record.file_name).stem,
            png=place.read_bytes() if number < 0 else read_packed(place, number),
            label=record.label,
            about={name: getattr(record, name) for name in _KNOWN_AT_ONCE if getattr(record, name) is not None},
        )
        for record, place, number in zip(records, found.paths, found.numbers.tolist(), strict=True)
    ]
    format_of(path).write(path, entries)
    shutil.rmtree(parts, ignore_errors=True)


def _to_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] losslessly, as a greyscale file where the channels are equal; speed before size."""
    grey = (pixels == pixels[..., :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
