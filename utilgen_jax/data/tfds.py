"""Data sets that tensorflow-datasets has prepared as ArrayRecord files; reading them needs no TensorFlow.

tensorflow-datasets leaves the images encoded and they are decoded here: the labels of CIFAR-10's 50,000 images are
then read in seconds, and an image that cannot be decoded is named.
"""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from utilgen_jax.data.image_source import Sources
from utilgen_jax.data.images import decode_image
from utilgen_jax.errors import InputError

# name, name/config, name:1.2.3. Nothing else: 'huggingface:...' and its like would run code from elsewhere.
_NAME = re.compile(r"\w+(/\w[\w.-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)
_RECORDS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared data set; an `ImageSource`. `records` gives dicts: the encoded `image`, the `label`."""

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
        for start in range(0, len(indices), _RECORDS_AT_ONCE):
            chunk = [int(index) for index in indices[start : start + _RECORDS_AT_ONCE]]
            for row, record in enumerate(self.records.__getitems__(chunk)):
                where = f"{self.name}: {self.ids[chunk[row]]}"
                out[start + row] = decode_image(io.BytesIO(record["image"]), where, self.image_size, self.channels)
        return out


def load(name: str, data_dir: str, image_size: int, channels: int) -> Sources:
    """Opens a prepared data set and reads its labels.

    Args:
        name: As tensorflow-datasets has it: 'cifar10', 'name/config', 'name:1.2.3'.
        data_dir: The folder that holds `name/`; empty: tensorflow-datasets' own, ~/tensorflow_datasets.
        image_size: Side in pixels of the images read.
        channels: 1 or 3.

    Returns:
        The split `train`, and as test the first of `test` and `validation` that is there and labelled.

    Raises:
        InputError: tensorflow-datasets is missing, or the set is missing, not prepared as ArrayRecord, damaged, or not
            one of images with one label each.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"config.data.name={name!r} is no name of a data set, like 'cifar10' or 'name/config:1.2.3'")
    try:
        import tensorflow_datasets as tfds  # Slow to import, and an extra: only where it is asked for.
    except ImportError as error:
        raise InputError(f"config.data.source='tfds': {error}; pip install 'utilgen_jax[tfds]'") from error

    location = f"data_dir={data_dir!r}" if data_dir else "its default folder"
    prepare = (
        "to prepare it: pip install 'utilgen_jax[tfds]' and then python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, data_dir={data_dir or None!r}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:  # AssertionError: a version that is not there.
        raise InputError(f"tensorflow-datasets has no {name!r} in {location}; {prepare}") from error
    if "train" not in builder.info.splits:
        raise InputError(f"{name!r} is not prepared in {location}; {prepare}")
    features = dict(builder.info.features.items())
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        raise InputError(f"{name!r} has no 'image' with one class 'label'; its features: {', '.join(features)}")

    # Masks and such too: they are not read.
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
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            raise InputError(f"{name!r} in {location}: {split_name} cannot be read: {error}; {prepare}") from error
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
    assert train is not None  # Its presence is checked above.
    return Sources(train=train, test=split("test") or split("validation"))


def _read_labels(records: Any) -> np.ndarray:
    """int32 [N]; in pieces, so that no more than a few encoded images are in memory."""
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(labels), _RECORDS_AT_ONCE):
        stop = min(start + _RECORDS_AT_ONCE, len(labels))
        labels[start:stop] = [record["label"] for record in records.__getitems__(list(range(start, stop)))]
    return labels
