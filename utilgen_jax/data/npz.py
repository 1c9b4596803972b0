"""Images and labels in one NumPy .npz file, such as MedMNIST's.

The arrays are `x_train` and `y_train`, or MedMNIST's `train_images` and `train_labels`; and the same for `test`, or for
`val` if there is no `test`. Images are uint8 [N, H, W] or [N, H, W, C] with C 1 or 3; labels are integers [N] or
[N, 1], from 0. An optional array of strings, `class_names`, names the classes.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utilgen_jax.data.image_source import ArraySource, Sources
from utilgen_jax.errors import InputError


def load(path: str, image_size: int, channels: int, class_names: Sequence[str] = ()) -> Sources:
    """Opens a .npz file without pickled arrays.

    Args:
        path: the file.
        image_size: side in pixels of the images read.
        channels: 1 or 3.
        class_names: class names, for a file that has none.

    Returns:
        The training split and, if the file has one, the test split.

    Raises:
        InputError: the file or an array is missing or invalid, or there are no class names.
    """
    arrays = _read_arrays(path)
    names = tuple(class_names)
    if "class_names" in arrays and arrays["class_names"].dtype.kind == "U":
        names = tuple(str(name) for name in arrays["class_names"].reshape(-1))
    if not names:
        raise InputError(f"{path} has no class names: set config.data.class_names, in the order of the labels")

    def split(*candidates: str) -> ArraySource | None:
        for split_name in candidates:
            for keys in (("x_{}", "y_{}"), ("{}_images", "{}_labels")):
                images, labels = (key.format(split_name) for key in keys)
                if images in arrays and labels in arrays:
                    return ArraySource(
                        name=path,
                        class_names=names,
                        labels=_check_labels(arrays[labels], len(arrays[images]), f"{path}: {labels}"),
                        ids=tuple(f"{split_name}/{index:05d}" for index in range(len(arrays[images]))),
                        images=_check_images(arrays[images], f"{path}: {images}"),
                        image_size=image_size,
                        channels=channels,
                    )
        return None

    train = split("train")
    if train is None:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"{path} needs x_train and y_train, or train_images and train_labels; it has {found}")
    return Sources(train=train, test=split("test", "val"))


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise InputError(f"config.data.path={path!r} is not a file; it should be a .npz file")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a .npz file, or is truncated; np.savez(path, x_train=..., y_train=...) makes one"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a .npz file of plain arrays: {error}") from error


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    if images.dtype != np.uint8:
        raise InputError(f"{where} is {images.dtype}; images must be uint8, 0..255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"{where} has shape {images.shape}; it should be [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    return images


def _check_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    if labels.shape not in ((count,), (count, 1)):
        raise InputError(f"{where} has shape {labels.shape}; it should be [{count}] or [{count}, 1]")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where} is {labels.dtype}; labels must be integers, from 0")
    return labels.reshape(-1).astype(np.int32)
