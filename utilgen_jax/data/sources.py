"""From `config.data` to labelled images: the table of what `config.data.source` can be."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from utilgen_jax.data import digits, image_folder, npz, tfds
from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.data.subset import choose_classes, leave_out, read_class_file, read_ids
from utilgen_jax.errors import InputError

# `data` is config.data, see `load_source`.
LOADERS: dict[str, Callable[[Any], Sources]] = {
    "digits": lambda data: digits.load(data.image_size, data.channels),
    "tfds": lambda data: tfds.load(data.name, data.path, data.image_size, data.channels),
    "imagefolder": lambda data: image_folder.load(data.path, data.image_size, data.channels),
    "npz": lambda data: npz.load(data.path, data.image_size, data.channels, data.class_names),
}


def load_source(data: Any) -> Sources:
    """Opens the data set that a configuration names.

    Args:
        data: `config.data`, see `utilgen_jax.config.schema`: source, name, path, image_size, channels, class_names,
            classes_file, max_classes, exclude. The class names, where given, replace the data set's own; classes that
            the file does not list, or beyond the first max_classes, are left out, and so are excluded train images.

    Returns:
        Train and test images; test is None for an undivided set, see `splits.few_shot`.

    Raises:
        InputError: The data set cannot be had, or the class names or the file do not fit it.
    """
    if data.source not in LOADERS:
        raise InputError(f"config.data.source={data.source!r} is not one of {', '.join(LOADERS)}")
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


def _renamed(sources: Sources, names: tuple[str, ...]) -> Sources:
    """The same images with other words for their classes, if any are given."""
    if not names:
        return sources
    if len(names) != len(sources.train.class_names) or len(set(names)) != len(names):
        raise InputError(
            f"config.data.class_names has {len(names)} names ({len(set(names))} different); {sources.train.name} needs "
            f"{len(sources.train.class_names)} different ones, for {', '.join(sources.train.class_names)}"
        )

    def renamed(source: Any) -> ImageSource:
        # All of LOADERS' are frozen dataclasses.
        return dataclasses.replace(source, class_names=names)

    return Sources(renamed(sources.train), sources.test and renamed(sources.test))
