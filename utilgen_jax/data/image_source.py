"""The interface of labelled image data sets."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from PIL import Image

from utilgen_jax.data.decoding import decode_all
from utilgen_jax.data.images import fit_image
from utilgen_jax.errors import InputError


class ImageSource(Protocol):
    """Labelled images that are decoded when read.

    Attributes:
        name: name for messages, e.g. 'digits' or the folder.
        class_names: K class names.
        labels: int32 [N] in 0..K-1.
        ids: N stable image ids, e.g. 'train/daisy/0200.jpg'.
        image_size: side in pixels of the images read.
        channels: of the images read, 1 or 3.
    """

    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102
    @property
    def ids(self) -> Sequence[str]: ...  # noqa: D102

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decodes images.

        Args:
            indices: n indices in 0..N-1.

        Returns:
            uint8 [n, H, W, C], with the size and channels of the source.

        Raises:
            InputError: images cannot be decoded; names them.
        """
        ...

    def at(self, image_size: int, channels: int) -> "ImageSource":
        """The same images, read from their originals at another size and with other channels."""
        ...

    def open(self, index: int) -> Image.Image:
        """Decodes an image at its original size, grey or RGB; InputError if it cannot be decoded."""
        ...

    def encoded(self, index: int) -> bytes:
        """The bytes of an image as it is stored; InputError if they cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class Sources:
    """A data set: training and test images of the same classes.

    Attributes:
        train: labelled training images, from which the few-shot images are chosen.
        test: test images, read once by the final evaluation; None for a data set without a test split.

    Raises:
        InputError: a class has no images, a label is out of range, or the splits have different classes.
    """

    train: ImageSource
    test: ImageSource | None

    def __post_init__(self) -> None:
        """Checks labels and classes."""
        _check_labels(self.train)
        empty = np.bincount(self.train.labels, minlength=len(self.train.class_names)) == 0
        if empty.any():
            names = ", ".join(self.train.class_names[k] for k in np.flatnonzero(empty))
            raise InputError(f"{self.train.name}: no training images of {names}; add some, or leave the class out")
        if self.test is not None:
            _check_labels(self.test)
            if self.train.class_names != self.test.class_names:
                raise InputError(
                    f"{self.train.name}: train and test have different classes: "
                    f"{', '.join(self.train.class_names)} and {', '.join(self.test.class_names)}"
                )


def _check_labels(source: ImageSource) -> None:
    labels, num_classes = source.labels, len(source.class_names)
    if len(labels) == 0:
        raise InputError(f"{source.name}: there are no images")
    if num_classes < 2:
        raise InputError(f"{source.name}: needs at least two classes, has {num_classes}")
    if labels.min() < 0 or labels.max() >= num_classes:
        bad = int(np.flatnonzero((labels < 0) | (labels >= num_classes))[0])
        raise InputError(f"{source.name}: {source.ids[bad]} has label {labels[bad]}, outside 0..{num_classes - 1}")


class SizedSource:
    """What sources that scale each image themselves have in common; for frozen dataclasses.

    Attributes:
        name: for messages.
        image_size: side in pixels of the images read.
        channels: channels of the images read, 1 or 3.
    """

    name: str
    image_size: int
    channels: int

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        raise NotImplementedError

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        raise NotImplementedError

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, image_size, image_size, channels]; see `ImageSource.read`."""
        out = np.empty((len(indices), self.image_size, self.image_size, self.channels), np.uint8)

        def decode(row: int) -> None:
            out[row] = fit_image(self.open(int(indices[row])), self.image_size, self.channels)

        decode_all(self.name, len(indices), decode)
        return out

    def at(self, image_size: int, channels: int) -> Self:
        """See `ImageSource.at`."""
        return dataclasses.replace(self, image_size=image_size, channels=channels)  # type: ignore[type-var]


def random_crops(
    source: ImageSource, rows: np.ndarray, number: int, is_flipped: bool, rng: np.random.Generator
) -> np.ndarray:
    """Random squares of originals, as large as their shorter side allows, scaled to the size of the source.

    Args:
        source: of the images.
        rows: which ones, int [N].
        number: C of each image; 0: the middle square alone, and its mirror image where these are asked.
        is_flipped: whether half of them are mirrored.
        rng: of places and mirroring.

    Returns:
        uint8 [C N, H, W, channels], all images once, then all again; C is 1 or 2 for 0.

    Raises:
        InputError: an image cannot be decoded.
    """
    if not number:
        middle = source.read(rows)
        return np.concatenate([middle, middle[:, :, ::-1]]) if is_flipped else middle
    out = np.empty((number, len(rows), source.image_size, source.image_size, source.channels), np.uint8)

    def decode(place: int) -> None:
        image = source.open(int(rows[place]))
        for crop in out[:, place]:
            crop[:] = fit_image(image, source.image_size, source.channels, rng.random())
            if is_flipped and rng.random() < 0.5:
                crop[:] = crop[:, ::-1].copy()

    decode_all(source.name, len(rows), decode)
    return out.reshape(-1, *out.shape[2:])


@dataclasses.dataclass(frozen=True)
class ArraySource(SizedSource):
    """Images in memory at their original size; an `ImageSource`.

    Attributes:
        name: name for messages.
        class_names: K class names.
        labels: int32 [N].
        ids: N image ids.
        images: uint8 [N, H, W, C], C 1 or 3, any H and W.
        image_size: side in pixels of the images read.
        channels: channels of the images read, 1 or 3.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    images: np.ndarray
    image_size: int
    channels: int

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        pixels = self.images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        return str(self.images.shape[1:]).encode() + self.images[index].tobytes()
