"""Data sets that tensorflow-datasets prepares as ArrayRecord files; preparing them needs TensorFlow, reading does not.

Images are read in encoded form and decoded here, so that labels load fast and errors name the image.
"""

import dataclasses
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from utilgen_jax.data.decoding import decode_all
from utilgen_jax.data.image_source import SizedSource, Sources
from utilgen_jax.data.images import fit_image, open_image
from utilgen_jax.errors import InputError, line_of

# name, name/config or name:1.2.3 only: others, such as 'huggingface:...', would run downloaded code.
_NAME = re.compile(r"\w+(/\w[\w.-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)
_RECORDS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class TfdsSource(SizedSource):
    """A split of a prepared data set; an `ImageSource`. `records` has dicts of the encoded `image` and `label`."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    records: Any
    image_size: int
    channels: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, image_size, image_size, channels]; see `ImageSource.read`."""
        out = np.empty((len(indices), self.image_size, self.image_size, self.channels), np.uint8)
        chunk: list[Any] = []

        def decode(row: int) -> None:
            if row % _RECORDS_AT_ONCE == 0:
                chunk[:] = self.records.__getitems__([int(index) for index in indices[row : row + _RECORDS_AT_ONCE]])
            where = f"{self.name}: {self.ids[int(indices[row])]}"
            image = open_image(io.BytesIO(chunk[row % _RECORDS_AT_ONCE]["image"]), where, self.channels)
            out[row] = fit_image(image, self.image_size, self.channels)

        decode_all(self.name, len(indices), decode)
        return out

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        record = self.records[index]
        return open_image(io.BytesIO(record["image"]), f"{self.name}: {self.ids[index]}", self.channels)

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        return self.records[index]["image"]


def load(name: str, data_dir: str, image_size: int, channels: int) -> Sources:
    """Opens a data set and reads its labels; where TensorFlow is installed, it is prepared on first use.

    Args:
        name: name in tensorflow-datasets, such as 'cifar10', 'name/config' or 'name:1.2.3'.
        data_dir: folder with `name/`; empty for tensorflow-datasets' default, ~/tensorflow_datasets.
        image_size: side in pixels of the images read.
        channels: 1 or 3.

    Returns:
        The split `train`, and as test split the first labelled one of `test` and `validation`.

    Raises:
        InputError: tensorflow-datasets is missing; or the data set is missing, damaged, not prepared as ArrayRecord, or
            does not have images with one label each.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"config.data.name={name!r} is no data set name, such as 'cifar10' or 'name/config:1.2.3'")
    try:
        import tensorflow_datasets as tfds  # optional and slow to import
    except ImportError as error:
        raise InputError(f"config.data.source='tfds': {error}; pip install 'utilgen_jax[tfds]'") from error

    location = f"data_dir={data_dir!r}" if data_dir else "its default folder"
    prepare = (
        "to prepare it: pip install 'utilgen_jax[tfds]' and then python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, data_dir={data_dir or None!r}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:  # AssertionError: a missing version
        raise InputError(f"tensorflow-datasets has no {name!r} in {location}; {prepare}") from error
    except Exception as error:  # of many kinds, on broken JSON
        raise InputError(f"{name!r} in {location} cannot be read: {line_of(error)}; {prepare}") from error
    if "train" not in builder.info.splits:
        # Several processes would prepare it side by side.
        if importlib.util.find_spec("tensorflow") is None or jax.process_count() > 1:
            raise InputError(f"{name!r} is not prepared in {location}; {prepare}")
        builder = _prepare(name, data_dir, location)
    try:
        features = dict(builder.info.features.items())
    except Exception as error:
        raise InputError(f"{name!r} in {location}: its features cannot be read: {line_of(error)}; {prepare}") from error
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        raise InputError(f"{name!r} has no 'image' with one class 'label'; its features: {', '.join(features)}")

    # including masks and the like, which are not read
    encoded = {
        key: tfds.decode.SkipDecoding() for key, kind in features.items() if isinstance(kind, tfds.features.Image)
    }

    def split(split_name: str) -> TfdsSource | None:
        if split_name not in builder.info.splits:
            return None
        try:
            records = builder.as_data_source(split=split_name, decoders=encoded)
            if split_name != "train" and records[0]["label"] < 0:
                return None
            labels = _read_labels(records)
        except NotImplementedError as error:
            raise InputError(f"{name!r} in {location} is not prepared as ArrayRecord; {prepare}") from error
        except Exception as error:  # of many kinds, on damaged files
            message = f"{name!r} in {location}: {split_name} cannot be read: {line_of(error)}; {prepare}"
            raise InputError(message) from error
        return TfdsSource(
            name=name,
            class_names=tuple(features["label"].names),
            labels=labels,
            ids=tuple(f"{split_name}/{index:05d}" for index in range(len(labels))),
            records=records,
            image_size=image_size,
            channels=channels,
        )

    train = split("train")
    assert train is not None  # checked above
    return Sources(train=train, test=split("test") or split("validation"))


def _prepare(name: str, data_dir: str, location: str) -> Any:
    """Downloads and prepares a data set, with the progress bars of tensorflow-datasets, and returns its builder."""
    import tensorflow_datasets as tfds

    print(f"preparing {name!r} in {location}: once, and it may take long", file=sys.stderr)
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # of many kinds: no connection, a full disk, files to be downloaded by hand
        raise InputError(f"{name!r} cannot be prepared in {location}: {line_of(error)}") from error
    return builder


def _read_labels(records: Any) -> np.ndarray:
    """Reads labels, int32 [N], in chunks, to hold few encoded images in memory."""
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(labels), _RECORDS_AT_ONCE):
        stop = min(start + _RECORDS_AT_ONCE, len(labels))
        labels[start:stop] = [record["label"] for record in records.__getitems__(list(range(start, stop)))]
    return labels
