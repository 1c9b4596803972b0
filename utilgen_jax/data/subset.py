"""A part of a data set: the classes that a file lists, or the first few; or all but the images that a file lists."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utilgen_jax.data.image_source import ImageSource
from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of another source's images; an `ImageSource`.

    Attributes:
        name: For messages.
        class_names: K words.
        labels: int32 [N], in 0..K-1.
        ids: N names, the source's own.
        source: Where the images are.
        indices: int64 [N], their positions in it.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    source: ImageSource
    indices: np.ndarray

    @classmethod
    def of(cls, source: ImageSource, indices: np.ndarray, class_names: tuple[str, ...], labels: np.ndarray) -> "Subset":
        """The images at some positions, with classes that may be numbered and called anew; labels int32 [n]."""
        ids = tuple(source.ids[int(index)] for index in indices)
        return cls(source.name, class_names, labels, ids, source, indices)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]; see `ImageSource.read`."""
        return self.source.read(self.indices[np.asarray(indices, np.int64)])


def choose_classes(source: ImageSource, words: Mapping[str, str]) -> Subset:
    """Keeps some classes, in the order in which they are numbered, and numbers them anew.

    Args:
        source: Labelled images.
        words: {the source's name of a class: the word for it}, of the classes that are kept.

    Returns:
        Their images, in the order of the source.
    """
    kept = [label for label, name in enumerate(source.class_names) if name in words]
    new_labels = np.full(len(source.class_names), -1, np.int32)
    new_labels[kept] = np.arange(len(kept))
    indices = np.flatnonzero(new_labels[source.labels] >= 0)
    class_names = tuple(words[source.class_names[label]] for label in kept)
    return Subset.of(source, indices, class_names, new_labels[source.labels[indices]])


def leave_out(source: ImageSource, ids: Sequence[str]) -> Subset:
    """All images of a source but some, in its order.

    Raises:
        InputError: The source has no image of that name.
    """
    unknown = set(ids) - set(source.ids)
    if unknown:
        raise InputError(
            f"config.data.exclude: {source.name} has no image {sorted(unknown)[0]!r}; its first is {source.ids[0]!r}"
        )
    indices = np.flatnonzero(~np.isin(np.asarray(source.ids), list(ids)))
    return Subset.of(source, indices, source.class_names, source.labels[indices])


def read_ids(path: str) -> list[str]:
    """Reads ids of images, a line each; InputError where there is no such text file."""
    return [line.strip() for line in _read_lines("config.data.exclude", path) if line.strip()]


def read_class_file(path: str, class_names: Sequence[str]) -> dict[str, str]:
    """Reads which classes are wanted, and what they are called.

    Each line is the data set's own name of a class, a blank or tab, and words for it, of which the part before the
    first comma is taken: `n01440764 tench, Tinca tinca`, as in ILSVRC's LOC_synset_mapping.txt.

    Args:
        path: The file, UTF-8; empty lines are passed over.
        class_names: K names that the data set knows its classes by.

    Returns:
        {name: words}, in the order of the file.

    Raises:
        InputError: No such file, a line without words, a name that the data set does not know, or a name or words
            twice; names the line.
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
            problem = f"no words follow {name!r}; write such as 'n01440764 tench'"
        elif name in words or word in words.values():
            problem = f"{name!r} or {word!r} stands in an earlier line too; each class needs its own words"
        if problem:
            raise InputError(f"{path}, line {number}: {problem}")
        words[name] = word
    return words


def _read_lines(field: str, path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{field}={path!r} cannot be read as text: {error}") from error
