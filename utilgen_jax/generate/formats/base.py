"""What every format is made of: examples, a file for each part, and what closes the set."""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utilgen_jax.generate.plan import Part
from utilgen_jax.pool.records import PoolRecord

PARTS = ".parts"  # folder of what belongs to parts until the set is closed
# What each image carries beside its pixels and its label.
FIELDS = (
    "prompt",
    "seed",
    "weight",
    "soft_label",
    "difficulty",
    "requested_difficulty",
    "round",
    "word",
    "conditioned_on",
)


@dataclasses.dataclass(frozen=True)
class Example:
    """An image of the set.

    Attributes:
        place: in the set, from 0.
        png: the file.
        record: what is known of it, with the name of its class; its `file_name` is that below a folder of images.
    """

    place: int
    png: bytes
    record: PoolRecord

    @property
    def key(self) -> str:
        """Its name: its place."""
        return f"{self.place:08d}"

    @property
    def fields(self) -> dict[str, Any]:
        """Class name and what else is known, by name."""
        return {"class_name": self.record.class_name} | {name: getattr(self.record, name) for name in FIELDS}


class Format(abc.ABC):
    """Writes a data set.

    Args:
        out: its folder, which exists.
        class_names: K of them.

    Attributes:
        opening: a line of Markdown: what opens the folder.
        reading: lines of Python that read the folder they run in: `images` uint8 [N, H, W, 3], and `rows`, N values by
            name.
    """

    opening: str
    reading: str

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        self.out = out
        self.class_names = tuple(class_names)

    @abc.abstractmethod
    def file(self, part: Part) -> Path:
        """The file that is there once a part is."""

    @abc.abstractmethod
    def write(self, part: Part, examples: Sequence[Example]) -> None:
        """Writes a part whole; the file last."""

    @abc.abstractmethod
    def close(self, parts: Sequence[Part], description: str) -> None:
        """Writes what the set has as a whole, once all parts are there; a second time it changes nothing.

        Args:
            parts: all of them.
            description: of the set, one line.
        """


def make_format(name: str, out: Path, class_names: Sequence[str]) -> Format:
    """Makes a format by its name, a key of `FORMATS`; InputError where a library for it is missing."""
    return importlib.import_module(f"utilgen_jax.generate.formats.{name}").FORMAT(out, class_names)
