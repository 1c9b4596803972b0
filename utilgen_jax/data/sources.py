"""Loads the data set of `config.data`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utilgen_jax.data import digits, hf, image_folder, npz, tfds
from utilgen_jax.data.config import DataConfig
from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.data.subset import choose_classes, leave_out, read_class_file, read_ids
from utilgen_jax.data.words import have_several, split_words
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.buckets import local_copy
from utilgen_jax.runtime.paths import is_in_bucket

# name -> loader of config.data, see `load_source`
LOADERS: dict[str, Callable[[DataConfig], Sources]] = {
    "digits": lambda data: digits.load(data.image_size, data.channels),
    "tfds": lambda data: tfds.load(data.name, data.path, data.image_size, data.channels),
    "hf": lambda data: hf.load(
        data.name, data.path, data.image_size, data.channels, (data.image_column, data.label_column)
    ),
    "imagefolder": lambda data: image_folder.load(data.path, data.image_size, data.channels),
    "npz": lambda data: npz.load(data.path, data.image_size, data.channels, _names(data.class_names)),
}


def load_source(data: DataConfig) -> Sources:
    """Opens the data set of a config.

    Args:
        data: `config.data`, see `utilgen_jax.config.schema`. `class_names` replaces the data set's own names, unless a
            class has several words, see `words.have_several`. `classes_file` and `max_classes` select classes.
            `exclude` removes training images.

    Returns:
        Training and test images; test is None for a data set without a test split, see `splits.few_shot`.

    Raises:
        InputError: the data set cannot be read, or the class names or files do not match it.
    """
    if data.source not in LOADERS:
        raise InputError(f"config.data.source={data.source!r} is not one of {', '.join(LOADERS)}")
    if is_in_bucket(data.path):
        data = dataclasses.replace(data, path=local_copy(data.path))
    sources = _renamed(LOADERS[data.source](data), tuple(data.class_names))
    if data.exclude:
        sources = Sources(leave_out(sources.train, read_ids(data.exclude)), sources.test)
    if data.classes_file:
        sources = _chosen(sources, read_class_file(data.classes_file, sources.train.class_names))
    if data.max_classes:
        sources = _chosen(sources, {name: name for name in sources.train.class_names[: data.max_classes]})
    return sources


def _chosen(sources: Sources, words: Mapping[str, str]) -> Sources:
    return Sources(choose_classes(sources.train, words), sources.test and choose_classes(sources.test, words))


def _names(entries: Sequence[str]) -> tuple[str, ...]:
    """Names for the classes of a file that has none: 'crane bird or crane' of several words."""
    return tuple(" or ".join(split_words(entry)) for entry in entries)


def _renamed(sources: Sources, names: tuple[str, ...]) -> Sources:
    """Renames the classes, if names are given; several words of a class are no name."""
    if not names:
        return sources
    own = sources.train.class_names
    if len(names) != len(own) or len(set(names)) != len(names):
        extra = f"; {names[len(own)]!r} has no class" if len(names) > len(own) else ""
        missing = f"; {own[len(names)]!r} has no entry" if len(names) < len(own) else ""
        raise InputError(
            f"config.data.class_names has {len(names)} entries ({len(set(names))} distinct); {sources.train.name} "
            f"needs {len(own)} distinct ones, for {', '.join(own)}{extra}{missing}"
        )
    if have_several(names):
        return sources

    def renamed(source: Any) -> ImageSource:
        # All sources of LOADERS are frozen dataclasses.
        return dataclasses.replace(source, class_names=names)

    return Sources(renamed(sources.train), sources.test and renamed(sources.test))
