"""From `config.data` to labelled pictures: the table of what `config.data.source` can be."""

import dataclasses
from collections.abc import Callable
from typing import Any

from utilgen_jax.data import digits, image_folder, npz, tfds
from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.errors import InputError

# `data` is config.data: source, name, path, image_size, channels, class_names.
LOADERS: dict[str, Callable[[Any], Sources]] = {
    "digits": lambda data: digits.load(data.image_size, data.channels),
    "tfds": lambda data: tfds.load(data.name, data.path, data.image_size, data.channels),
    "imagefolder": lambda data: image_folder.load(data.path, data.image_size, data.channels),
    "npz": lambda data: npz.load(data.path, data.image_size, data.channels, data.class_names),
}


def load_source(data: Any) -> Sources:
    """Opens the data set that a configuration names.

    Args:
        data: `config.data`, see `utilgen_jax.config`; its `class_names`, where given, replace the data set's own.

    Returns:
        Train and test pictures; test is None for an undivided set, see `splits.few_shot`.

    Raises:
        InputError: The data set cannot be had, or the class names do not fit it.
    """
    if data.source not in LOADERS:
        raise InputError(f"config.data.source={data.source!r} is not one of {', '.join(LOADERS)}")
    sources = LOADERS[data.source](data)
    names = tuple(data.class_names)
    if not names:
        return sources
    if len(names) != len(sources.train.class_names) or len(set(names)) != len(names):
        raise InputError(
            f"config.data.class_names has {len(names)} names ({len(set(names))} different); {sources.train.name} needs "
            f"{len(sources.train.class_names)} different ones, for {', '.join(sources.train.class_names)}"
        )
    return Sources(_renamed(sources.train, names), sources.test and _renamed(sources.test, names))


def _renamed(source: Any, class_names: tuple[str, ...]) -> ImageSource:
    """The same source, a frozen dataclass as all of LOADERS' are, with other words for its classes."""
    return dataclasses.replace(source, class_names=class_names)
