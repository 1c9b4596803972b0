"""Images and labels in one NumPy .npz file, such as MedMNIST's.

The arrays are `x_train` and `y_train`, or MedMNIST's `train_images` and `train_labels`; and the same for `test`, or for
`val` if there is no `test`. Images are uint8 [N, H, W] or [N, H, W, C] with C 1 or 3, as many channels in each array;
labels are integers [N] or [N, 1], from 0. An optional array of K strings, `class_names`, names the classes. Arrays that
are not used are told in one line.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utilgen_jax.data.image_source import ArraySource, Sources
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.notes import warn
from utilgen_jax.runtime.paths import expand

_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_NAMES = "class_names"
_SHOWN = 5  # classes by name


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
        InputError: the file or an array is missing or invalid, arrays do not suit each other, or there are no class
            names.
    """
    arrays = _read_arrays(path)
    train_arrays = _find_split(arrays, "train", path)
    if train_arrays is None:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"{path} needs x_train and y_train, or train_images and train_labels; it has {found}")
    names = _read_names(arrays, path) or tuple(class_names)
    if not names:
        raise InputError(f"{path} has no class names: set config.data.class_names, in the order of the labels")

    def split(split_name: str, keys: tuple[str, str]) -> ArraySource:
        images, labels = (arrays[key] for key in keys)
        pixels = _check_images(images, f"{path}: {keys[0]}")
        return ArraySource(
            name=path,
            class_names=names,
            labels=_check_labels(labels, len(pixels), f"{path}: {keys[1]}"),
            ids=tuple(f"{split_name}/{index:05d}" for index in range(len(pixels))),
            images=pixels,
            image_size=image_size,
            channels=channels,
        )

    train = split("train", train_arrays)
    test, used = None, {_NAMES, *train_arrays}
    for split_name in ("test", "val"):
        keys = _find_split(arrays, split_name, path)
        if keys is not None and test is None:
            test = split(split_name, keys)
            used |= set(keys)
            _check_together(train, test, f"{path}: {keys[0]}", train_arrays[0])
    if unused := sorted(set(arrays) - used):
        warn(f"{path}: not used: {len(unused)} arrays ({', '.join(unused)})")
    return Sources(train=train, test=test)


def _find_split(arrays: dict[str, np.ndarray], split_name: str, path: str) -> tuple[str, str] | None:
    """The names of a split's arrays of images and labels; None where it has neither.

    Raises:
        InputError: there is one without the other, or both twice.
    """
    candidates = [(images.format(split_name), labels.format(split_name)) for images, labels in _KEYS]
    for pair in candidates:
        present = [key for key in pair if key in arrays]
        if len(present) == 1 and split_name != "train":
            (absent,) = set(pair) - set(present)
            raise InputError(f"{path} has {present[0]} but no {absent}; add it, or remove {present[0]}")
    found = [pair for pair in candidates if set(pair) <= set(arrays)]
    if len(found) > 1:
        raise InputError(f"{path} has {' and '.join(images for images, _ in found)}; remove one and its labels")
    return found[0] if found else None


def _read_names(arrays: dict[str, np.ndarray], path: str) -> tuple[str, ...]:
    """The file's own class names; empty where it has none."""
    if _NAMES not in arrays:
        return ()
    stored = arrays[_NAMES]
    if stored.dtype.kind not in "US" or stored.ndim != 1:
        raise InputError(f"{path}: {_NAMES} is {stored.dtype} {stored.shape}; it should be an array of K strings")
    try:
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in stored.tolist())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {_NAMES} is not UTF-8 ({error}); store it as an array of str") from error
    if not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: {_NAMES} holds an empty name, or one twice: {', '.join(names)}")
    return names


def _check_together(train: ArraySource, test: ArraySource, where: str, of_train: str) -> None:
    """Raises InputError where the test images have other channels; warns where classes have none."""
    expected, found = train.images.shape[-1], test.images.shape[-1]
    if found != expected:
        raise InputError(f"{where} has {found} channels and {of_train} has {expected}; make them the same")
    names = [name for label, name in enumerate(train.class_names) if label not in set(test.labels.tolist())]
    if names:
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        warn(f"{where} has no images of {len(names)} of {len(train.class_names)} classes ({shown})")


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    path = expand(path)
    if not Path(path).is_file():
        raise InputError(f"config.data.path={path!r} is not a file; it should be a .npz file")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a .npz file, or is truncated; np.savez(path, x_train=..., y_train=...) makes one"
        )
    try:
        # Opened here: where NumPy fails, it leaves a file open that it has opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    # NumPy's parser of headers and zip's decoders raise nearly anything on broken bytes.
    except Exception as error:
        raise InputError(f"{path} cannot be read as a .npz file of plain arrays: {error}") from error


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    if images.dtype != np.uint8:
        raise InputError(f"{where} is {images.dtype}; images must be uint8, 0..255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise InputError(f"{where} has shape {images.shape}; it should be [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    return images


def _check_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    if labels.shape not in ((count,), (count, 1)):
        raise InputError(f"{where} has shape {labels.shape}; it should be [{count}] or [{count}, 1]")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where} is {labels.dtype}; labels must be integers, from 0")
    if labels.size and not -(2**31) <= labels.min() <= labels.max() < 2**31:
        raise InputError(f"{where} holds {labels.max()}; labels are numbers of classes, from 0")
    return labels.reshape(-1).astype(np.int32)
