"""Which images there are to be, in which files, and which of them a command makes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.errors import InputError, nearest
from utilgen_jax.runtime.atomic_write import write_text

_MOST_IN_A_FILE = 512
SETTINGS = "generate.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of one file, or of one step of a folder of images.

    Attributes:
        number: from 0.
        of: how many parts there are.
        start, stop: the places in the set of its first image, and after its last.
    """

    number: int
    of: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Such as "00003-of-00010"."""
        return f"{self.number:05d}-of-{self.of:05d}"


def class_counts(settings: dict[str, Any], class_names: Sequence[str]) -> np.ndarray:
    """How many images of each class there are to be: int [K].

    Args:
        settings: has "num", shared evenly, the first classes getting one more; or "class_counts", "daisy:10".
        class_names: K of the run.

    Raises:
        InputError: a class is not the run's, or is given twice; or there are no images.
    """
    if settings["num"]:
        number, rest = divmod(settings["num"], len(class_names))
        return number + (np.arange(len(class_names)) < rest)
    found: dict[str, int] = {}
    for text in settings["class_counts"]:
        name, _, number = text.strip().rpartition(":")
        if name not in class_names:
            near = nearest(name, class_names)
            raise InputError(f"--class_counts: the run has no class {name!r}; the nearest is {near!r}")
        if name in found:
            raise InputError(f"--class_counts: {name!r} is given twice")
        found[name] = int(number)
    if not any(found.values()):
        raise InputError("--class_counts: no image of any class; give a number from 1")
    return np.array([found.get(name, 0) for name in class_names])


def split_in_parts(number: int, images_per_file: int, num_shards: int) -> list[Part]:
    """The parts of a set of images, at least one for each shard.

    Args:
        number: of images.
        images_per_file: in all parts but the last; 0: up to 512.
        num_shards: commands that share the work.

    Raises:
        InputError: there are fewer parts than shards.
    """
    size = images_per_file or max(min(_MOST_IN_A_FILE, number // num_shards), 1)
    starts = range(0, number, size)
    if len(starts) < num_shards:
        raise InputError(f"--shard: {number} images, {size} a file, make {len(starts)} files for {num_shards} shards")
    return [Part(place, len(starts), start, min(start + size, number)) for place, start in enumerate(starts)]


def claim_folder(out: Path, settings: dict[str, Any], write: bool) -> None:
    """Notes in the folder which data set it holds, or checks that it holds this one.

    Args:
        out: the data set's folder.
        settings: that decide its content.
        write: whether to note it.

    Raises:
        InputError: it holds another one (names what differs), or other files.
    """
    file = out / SETTINGS
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: cannot be read ({error}); take another --out, or remove this one") from error
        differing = [
            f"{name}: {before.get(name)!r} before, {now!r} now"
            for name, now in settings.items()
            if before.get(name) != now
        ]
        if differing:
            lines = "\n  ".join(differing)
            raise InputError(f"--out: {out} holds another data set; take another folder, or remove it\n  {lines}")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} holds other files; take another folder")
    elif write:
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
