"""Subsets of a data set: selected classes, or all but excluded images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utilgen_jax.data.image_source import ImageSource
from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Subset:
    """A subset of another source's images; an `ImageSource`.

    Attributes:
        name: name for messages.
        class_names: K class names.
        labels: int32 [N] in 0..K-1.
        ids: N image ids of the source.
        source: source of the images.
        indices: indices of the images in the source, int64 [N].
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    source: ImageSource
    indices: np.ndarray

    @classmethod
    def of(cls, source: ImageSource, indices: np.ndarray, class_names: tuple[str, ...], labels: np.ndarray) -> "Subset":
        """Makes the subset of some indices, with other labels (int32 [n]) and class names."""
        ids = tuple(source.ids[int(index)] for index in indices)
        return cls(source.name, class_names, labels, ids, source, indices)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]; see `ImageSource.read`."""
        return self.source.read(self.indices[np.asarray(indices, np.int64)])

    @property
    def image_size(self) -> int:
        """See `ImageSource`."""
        return self.source.image_size

    @property
    def channels(self) -> int:
        """See `ImageSource`."""
        return self.source.channels

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        return self.source.open(int(self.indices[index]))

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        return self.source.encoded(int(self.indices[index]))

    def at(self, image_size: int, channels: int) -> "Subset":
        """See `ImageSource.at`."""
        return dataclasses.replace(self, source=self.source.at(image_size, channels))


def choose_classes(source: ImageSource, words: Mapping[str, str]) -> Subset:
    """Selects classes and renumbers them in their order.

    Args:
        source: labelled images.
        words: {class name of the source: new class name} of the selected classes.

    Returns:
        The images of these classes, in the order of the source.
    """
    kept = [label for label, name in enumerate(source.class_names) if name in words]
    new_labels = np.full(len(source.class_names), -1, np.int32)
    new_labels[kept] = np.arange(len(kept))
    indices = np.flatnonzero(new_labels[source.labels] >= 0)
    class_names = tuple(words[source.class_names[label]] for label in kept)
    return Subset.of(source, indices, class_names, new_labels[source.labels[indices]])


def leave_out(source: ImageSource, ids: Sequence[str]) -> Subset:
    """Removes images by id.

    Raises:
        InputError: the source has no image of an id.
    """
    unknown = set(ids) - set(source.ids)
    if unknown:
        raise InputError(
            f"config.data.exclude: {source.name} has no image {sorted(unknown)[0]!r}; its first is {source.ids[0]!r}"
        )
    indices = np.flatnonzero(~np.isin(np.asarray(source.ids), list(ids)))
    return Subset.of(source, indices, source.class_names, source.labels[indices])


def read_ids(path: str) -> list[str]:
    """Reads image ids, one per line; InputError if the file cannot be read."""
    return [line.strip() for line in _read_lines("config.data.exclude", path) if line.strip()]


def read_class_file(path: str, class_names: Sequence[str]) -> dict[str, str]:
    """Reads the classes to use and their names for prompts.

    Each line has the data set's name of a class, a blank or tab, and the new name up to a comma: `n01440764 tench,
    Tinca tinca`, as in ILSVRC's LOC_synset_mapping.txt.

    Args:
        path: text file in UTF-8; empty lines are ignored.
        class_names: K class names of the data set.

    Returns:
        {class name of the data set: new name}, in the order of the file.

    Raises:
        InputError: the file cannot be read, or a line has an unknown class, no new name, or a repeated name.
    """
    lines = _read_lines("config.data.classes_file", path)
    known = set(class_names)
    words: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.strip().replace("\t", " ").partition(" ")
        word = rest.partition(",")[0].strip()
        problem = ""
        if not line.strip():
            continue
        if name not in known:
            problem = f"the data set has no class {name!r}; its first is {class_names[0]!r}"
        elif not word:
            problem = f"no name follows {name!r}; write a line such as 'n01440764 tench'"
        elif name in words or word in words.values():
            problem = f"{name!r} or {word!r} is in an earlier line too; names must be distinct"
        if problem:
            raise InputError(f"{path}, line {number}: {problem}")
        words[name] = word
    return words


def _read_lines(field: str, path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{field}={path!r} cannot be read as text: {error}") from error
