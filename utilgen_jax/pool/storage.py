"""The synthetic pool on disk: a folder that a person can open and any reader of image folders can read.

    <folder>/<class>/00012.png      the image; the number counts through the whole pool
    <folder>/metadata.jsonl         one line an image, the fields of `PoolRecord`
    <folder>/shard-00003/...        the same of each process, where several write; the number counts through all shards

An image belongs to the pool once its line in metadata.jsonl is complete; images are written first, their lines
after. Work that was cut off leaves at most images without a line and half a line, which the next `PoolWriter`
removes. Only metadata.jsonl is forced to the disk: after a power cut `read_pool` names images that did not reach it.
"""

import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.data.streamed_images import IN_MEMORY, Images, Reading
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import append_text, cut_partial_line, write_bytes, write_text

METADATA = "metadata.jsonl"
_SHARD = re.compile(r"shard-\d{5}")
# Images of `PoolWriter`, whole or partial; other files in the folder are never removed.
_IMAGE_FILE = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.partial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolRecord:
    """What is known of one image; None: not known.

    Attributes:
        label: 0..K-1.
        prompt: What it was generated from.
        seed: Together with the prompt gives the same image again.
        difficulty: s in [0, 1], measured.
        requested_difficulty: s in [0, 1], requested of the generator.
        weight: Of the image in training, in [0, 1].
        soft_label: K probabilities.
        round: The round of generation that made it, from 0.
        word: The word of the class in the prompt, where the class has several; a line lacks it where there is none.
        conditioned_on: Ids of the real images that the image was made from; a line lacks it where there are none.
        file_name: Path below the pool's folder; the writer fills it in.
        class_name: The class in words; the writer fills it in.
    """

    file_name: str = ""
    label: int
    class_name: str = ""
    prompt: str | None = None
    seed: int | None = None
    difficulty: float | None = None
    requested_difficulty: float | None = None
    weight: float | None = None
    soft_label: tuple[float, ...] | None = None
    round: int | None = None
    word: str | None = None
    conditioned_on: tuple[str, ...] | None = None


FIELDS = tuple(field.name for field in dataclasses.fields(PoolRecord))
# What a field that may be None is otherwise, as JSON has it.
_KINDS: dict[str, Any] = {
    "prompt": str,
    "seed": int,
    "difficulty": int | float,
    "requested_difficulty": int | float,
    "weight": int | float,
    "soft_label": list,
    "round": int,
    "word": str,
    "conditioned_on": list,
}
_LEFT_OUT = ("word", "conditioned_on")  # of a line, where they are None


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

    def __init__(self, folder: str | Path, class_names: Sequence[str], shard: int | None = None) -> None:
        """Opens or makes the folder, and removes what an interrupted `append` left.

        Args:
            folder: The pool's folder.
            class_names: K words.
            shard: Of this process, where several write; None: it writes alone.

        Raises:
            InputError: The folder holds a pool of other classes, a damaged one, or one that lacks an image.
        """
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        self._class_folders = class_folders(self.class_names)
        self._shard = "" if shard is None else f"shard-{shard:05d}"
        (self.folder / self._shard).mkdir(parents=True, exist_ok=True)
        (self.folder / self._shard / METADATA).touch()
        records = read_records(self.folder, self.class_names)
        for record in records:
            _image_path(self.folder, record)
        files = _metadata_files(self.folder)
        for file in files:
            cut_partial_line(file)
        if len(files) > 1:
            records = self._cut_at_first_gap(records)
        self._remove_orphans({record.file_name for record in records}, files)
        self._count = len(records)

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
                file_name=f"{base}{self._class_folders[record.label]}/{number:05d}.png",
                class_name=self.class_names[record.label],
            )
            for number, record in zip(numbers.tolist(), records, strict=True)
        ]
        lines = "".join(to_line(record) for record in named)  # Before any file: a value JSON cannot hold raises here.
        for pixels, record in zip(to_uint8(images), named, strict=True):
            path = self.folder / record.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _to_png(pixels))
        append_text(self.folder / self._shard / METADATA, lines)
        self._count = int(numbers[-1]) + 1

    def _cut_at_first_gap(self, records: list[PoolRecord]) -> list[PoolRecord]:
        """Leaves out, on disk too, what follows the first image that is missing in the shard of another process."""
        places = np.array([_place(record) for record in records])
        gaps = np.flatnonzero(places != np.arange(len(records)))
        kept = records[: gaps[0]] if len(gaps) else records
        if len(kept) < len(records):
            _write_records(self.folder, kept)
        return kept

    def _remove_orphans(self, committed: set[str], metadata_files: Sequence[Path]) -> None:
        for class_folder in (file.parent / name for file in metadata_files for name in self._class_folders):
            for path in class_folder.glob("*"):
                name = path.relative_to(self.folder).as_posix()
                if _IMAGE_FILE.fullmatch(path.name) and name not in committed:
                    path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class PoolFiles:
    """A pool's image files, to be read at random.

    Attributes:
        paths: of the images.
    """

    paths: tuple[Path, ...]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decodes images: uint8 [n, H, W, 3].

        Raises:
            InputError: an image cannot be decoded or has another size than the first of them.
        """
        images: list[np.ndarray] = []
        for path in (self.paths[int(index)] for index in indices):
            try:
                with Image.open(path) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except Exception as error:  # On broken bytes Pillow's decoders raise nearly anything.
                raise InputError(f"{path}: the image cannot be decoded ({error}); generate the pool again") from error
            if images[-1].shape != images[0].shape:
                first = f"the first of the pool {images[0].shape[:2]}"
                raise InputError(f"{path} is {images[-1].shape[:2]} pixels, {first}")
        return np.stack(images)


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
    files = PoolFiles(tuple(_image_path(folder, record) for record in records))
    images = reading.images(files, np.arange(len(records)), files.read([0]).shape[1:], itemsize=1)
    return Pool(images, np.array([record.label for record in records], np.int32), tuple(records))


def update_records(folder: str | Path, **columns: Sequence[Any] | np.ndarray) -> None:
    """Replaces fields of all records at once; each metadata.jsonl is the old or the new one at any time.

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
    _write_records(folder, records)


def _write_records(folder: Path, records: Sequence[PoolRecord]) -> None:
    lines: dict[Path, list[str]] = {file: [] for file in _metadata_files(folder)}
    for record in records:  # Before any file: a value JSON cannot hold raises here.
        lines[folder / _shard_of(record.file_name) / METADATA].append(to_line(record))
    for file, of_file in lines.items():
        write_text(file, "".join(of_file), fsync=True)


def read_records(folder: str | Path, class_names: tuple[str, ...] | None) -> list[PoolRecord]:
    """The committed records, checked against each other and against class_names; images are not looked at.

    Those of shards are in the order of their numbers.
    """
    folder = Path(folder)
    files = _metadata_files(folder)
    if not files:
        raise InputError(f"{folder} is no pool: it has no {METADATA}")
    names: dict[int, str] = dict(enumerate(class_names)) if class_names is not None else {}
    seen: set[str] = set()
    records = [record for file in files for record in _read_lines(file, folder, class_names, names, seen)]
    if len(files) == 1:
        return records
    records.sort(key=_place)
    twice = [record for record, before in zip(records[1:], records, strict=False) if _place(record) == _place(before)]
    if twice:
        raise InputError(f"{folder}: image {_place(twice[0])} stands in two shards; remove the folder to make it again")
    return records


def _metadata_files(folder: Path) -> list[Path]:
    """The metadata.jsonl of a pool, or of its shards in their order."""
    files = [folder / METADATA, *sorted(file for file in folder.glob(f"shard-*/{METADATA}"))]
    return [file for file in files if file.is_file() and (file.parent == folder or _SHARD.fullmatch(file.parent.name))]


def _shard_of(file_name: str) -> str:
    """The shard's folder in which an image lies; "" where there are none."""
    first = file_name.partition("/")[0]
    return first if _SHARD.fullmatch(first) else ""


def _place(record: PoolRecord) -> int:
    """An image's number in its pool."""
    stem = Path(record.file_name).stem
    return int(stem) if stem.isdecimal() else -1


def _read_lines(
    metadata: Path, folder: Path, class_names: tuple[str, ...] | None, names: dict[int, str], seen: set[str]
) -> list[PoolRecord]:
    """The records of one file; `names` and `seen` are of all files of the pool's."""
    records: list[PoolRecord] = []
    shard = "" if metadata.parent == folder else f"{metadata.parent.name}/"
    # What follows the last newline was never committed.
    for number, line in enumerate(metadata.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{metadata}, line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}); remove the pool's folder to generate it again") from error
        if not isinstance(fields, dict) or not set(fields) <= set(FIELDS):
            raise InputError(f"{where} should be a JSON object with the fields {', '.join(FIELDS)}")
        label, name, file_name = (fields.get(key) for key in ("label", "class_name", "file_name"))
        if type(label) is not int or not 0 <= label < (2**31 if class_names is None else len(class_names)):
            expected = f"0..{len(class_names) - 1}" if class_names is not None else "a whole number from 0"
            raise InputError(f"{where}: label {label!r} is out of range, it should be {expected}")
        if not isinstance(name, str) or names.setdefault(label, name) != name:
            raise InputError(f"{where}: class_name {name!r}, but label {label} is {names.get(label)!r}: another pool?")
        if not isinstance(file_name, str) or shard + file_name in seen:
            raise InputError(f"{where}: file_name {file_name!r} is missing or stands there twice")
        fields["file_name"] = shard + file_name
        seen.add(shard + file_name)
        wrong = [key for key, kind in _KINDS.items() if not isinstance(fields.get(key), kind | None)]
        if wrong:
            raise InputError(f"{where}: {wrong[0]} is {fields[wrong[0]]!r}, which it cannot be")
        lists = {key: tuple(fields[key]) for key in ("soft_label", "conditioned_on") if fields.get(key) is not None}
        records.append(PoolRecord(**{**fields, **lists}))
    return records


def _image_path(folder: Path, record: PoolRecord) -> Path:
    """The path of a record's image, which exists and lies below the folder."""
    path = folder / record.file_name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{folder / METADATA}: file_name {record.file_name!r} leaves the pool's folder")
    if not path.is_file():
        raise InputError(f"{path} is missing; remove the pool's folder to generate it again")
    return path


def class_folders(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """K different folder names: words joined by _; with the label behind, if words alone do not tell classes apart."""
    slugs = [re.sub(r"\W+", "_", name).strip("_").lower() or "class" for name in class_names]
    if len(set(slugs)) < len(slugs):
        slugs = [f"{slug}_{label}" for label, slug in enumerate(slugs)]
    return tuple(slugs)


def to_line(record: PoolRecord) -> str:
    """A line of metadata.jsonl, with its end; ValueError where a value is not finite."""
    fields = dataclasses.asdict(record)
    if shard := _shard_of(record.file_name):
        fields["file_name"] = record.file_name.removeprefix(f"{shard}/")
    fields = {name: value for name, value in fields.items() if value is not None or name not in _LEFT_OUT}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_to_plain) + "\n"


def _to_plain(value: Any) -> Any:
    """NumPy and JAX scalars and arrays as what JSON knows."""
    return np.asarray(value).tolist()


def _to_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] losslessly, as a greyscale file where the channels are equal; speed before size."""
    grey = (pixels == pixels[..., :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
