"""Flags for the data set of a command without a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from absl import flags

from utilgen_jax.data.config import DataConfig
from utilgen_jax.errors import InputError

if TYPE_CHECKING:
    from utilgen_jax.data.image_source import Sources

# Config fields in the loaders' messages -> flags.
_FLAGS = {
    "config.data.path": "--data_path",
    "config.data.name": "--data",
    "config.data.source='tfds'": "--data",
    "config.data.class_names": "--class_names",
    "config.data.image_size": "--image_size",
}


def define_data_flags(values: flags.FlagValues) -> None:
    """Adds --data, --data_path, --class_names, --image_size and --channels."""
    kinds = "npz, imagefolder, or the name of a prepared tensorflow-datasets data set"
    paths = ".npz file, image folder, or tensorflow-datasets' data_dir; empty: its default"
    flags.DEFINE_string("data", None, kinds, flag_values=values)
    flags.DEFINE_string("data_path", "", paths, flag_values=values)
    flags.DEFINE_list("class_names", [], "class names, if the data set has none", flag_values=values)
    size = "side in pixels to which images are scaled"
    flags.DEFINE_integer("image_size", 32, size, lower_bound=8, flag_values=values)
    flags.DEFINE_integer("channels", 3, "1: grey, 3: RGB", lower_bound=1, flag_values=values)


def load_flagged_source(settings: dict[str, Any]) -> Sources:
    """Opens the data set; returns `image_source.Sources`.

    Args:
        settings: values of the flags of `define_data_flags` by name.

    Raises:
        InputError: the data cannot be read.
    """
    from utilgen_jax.data.sources import LOADERS, load_source

    name = settings["data"]
    data = DataConfig(
        source=name if name in LOADERS else "tfds",
        name=name,
        path=settings["data_path"],
        image_size=settings["image_size"],
        channels=settings["channels"],
        class_names=tuple(settings["class_names"]),
    )
    return load_source(data)


@contextmanager
def named_as_flags() -> Iterator[None]:
    """Replaces config fields by flags in the messages of InputErrors."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for field, flag in _FLAGS.items():
            message = message.replace(field, flag)
        raise InputError(message) from error
