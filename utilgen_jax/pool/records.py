"""What is known of a pool's images: a line of metadata.jsonl for each, alone or in the shards of several processes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.distributed import is_own

METADATA = "metadata.jsonl"
_SHARD = re.compile(r"shard-\d{5}")


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


def read_records(folder: str | Path, class_names: tuple[str, ...] | None) -> list[PoolRecord]:
    """The committed records, checked against each other and against class_names; images are not looked at.

    Those of shards are in the order of their numbers.
    """
    folder = Path(folder)
    files = metadata_files(folder)
    if not files:
        raise InputError(f"{folder} is no pool: it has no {METADATA}")
    names: dict[int, str] = dict(enumerate(class_names)) if class_names is not None else {}
    seen: set[str] = set()
    records = [record for file in files for record in _read_lines(file, folder, class_names, names, seen)]
    if len(files) == 1:
        return records
    records.sort(key=place_of)
    twice = [
        record for record, before in zip(records[1:], records, strict=False) if place_of(record) == place_of(before)
    ]
    if twice:
        raise InputError(
            f"{folder}: image {place_of(twice[0])} stands in two shards; remove the folder to make it again"
        )
    return records


def metadata_files(folder: Path) -> list[Path]:
    """The metadata.jsonl of a pool, or of its shards in their order."""
    files = [folder / METADATA, *sorted(file for file in folder.glob(f"shard-*/{METADATA}"))]
    return [file for file in files if file.is_file() and (file.parent == folder or _SHARD.fullmatch(file.parent.name))]


def shard_of(file_name: str) -> str:
    """The shard's folder in which an image lies; "" where there are none."""
    first = file_name.partition("/")[0]
    return first if _SHARD.fullmatch(first) else ""


def place_of(record: PoolRecord) -> int:
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


def write_records(folder: Path, records: Sequence[PoolRecord], own_alone: bool = False) -> None:
    """Replaces the lines of all files, or of this process's own; each is the old or the new one at any time."""
    lines: dict[Path, list[str]] = {file: [] for file in metadata_files(folder)}
    for record in records:  # Before any file: a value JSON cannot hold raises here.
        lines[folder / shard_of(record.file_name) / METADATA].append(to_line(record))
    for file, of_file in lines.items():
        if not own_alone or is_own(file.relative_to(folder).as_posix()):
            write_text(file, "".join(of_file), fsync=True)


def class_folders(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """K different folder names: words joined by _; with the label behind, if words alone do not tell classes apart."""
    slugs = [re.sub(r"\W+", "_", name).strip("_").lower() or "class" for name in class_names]
    if len(set(slugs)) < len(slugs):
        slugs = [f"{slug}_{label}" for label, slug in enumerate(slugs)]
    return tuple(slugs)


def to_line(record: PoolRecord) -> str:
    """A line of metadata.jsonl, with its end; ValueError where a value is not finite."""
    fields = dataclasses.asdict(record)
    if shard := shard_of(record.file_name):
        fields["file_name"] = record.file_name.removeprefix(f"{shard}/")
    fields = {name: value for name, value in fields.items() if value is not None or name not in _LEFT_OUT}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_to_plain) + "\n"


def _to_plain(value: Any) -> Any:
    """NumPy and JAX scalars and arrays as what JSON knows."""
    return np.asarray(value).tolist()
