"""Image data sets of the Hugging Face hub, and folders of Parquet, Arrow or WebDataset files, through `datasets`.

Images are read in encoded form and decoded here, so that labels load fast and errors name the image. `datasets` runs no
downloaded code, from version 4 on.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from utilgen_jax.data.image_source import SizedSource, Sources
from utilgen_jax.data.images import open_image, read_encoded
from utilgen_jax.errors import InputError, line_of
from utilgen_jax.runtime import hub
from utilgen_jax.runtime.paths import expand

# owner/name, with a configuration, with a revision
_NAME = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?", re.ASCII)
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls")  # in this order, where there are several columns
_TEST_NAMES = ("test", "validation", "val", "valid")


@dataclasses.dataclass(frozen=True)
class HfSource(SizedSource):
    """A split of a data set; an `ImageSource`.

    Attributes:
        name: name for messages.
        class_names: K class names.
        labels: int32 [N].
        ids: N image ids, 'train/00012'.
        images: a column of dicts with the encoded `bytes`, or the `path` of a file.
        folder: the local folder, out of which no file is read; None for a data set of the hub.
        image_size: side in pixels of the images read.
        channels: channels of the images read, 1 or 3.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    images: Any
    folder: Path | None
    image_size: int
    channels: int

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        return open_image(self._file(index), f"{self.name}: {self.ids[index]}", self.channels)

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        file = self._file(index)
        return read_encoded(file) if isinstance(file, Path) else file.read()

    def _file(self, index: int) -> Path | BinaryIO:
        where = f"{self.name}: {self.ids[index]}"
        try:
            image: Mapping[str, Any] | None = self.images[index]
        except Exception as error:  # of many kinds, where a file is damaged
            raise InputError(f"{where}: cannot be read: {line_of(error)}") from error
        if image and image["bytes"] is not None:
            return io.BytesIO(image["bytes"])
        if not image or not image["path"] or self.folder is None:
            raise InputError(f"{where}: there is no image; remove the row")
        path = Path(os.path.realpath(self.folder / image["path"]))
        if not path.is_relative_to(os.path.realpath(self.folder)):
            raise InputError(f"{where}: {path} lies outside of {self.folder}; copy it into the folder")
        return path


def load(name: str, path: str, image_size: int, channels: int, columns: tuple[str, str] = ("", "")) -> Sources:
    """Opens a data set and reads its labels; one of the hub is downloaded if it is not in the cache.

    Args:
        name: 'owner/name', 'owner/name:config' or 'owner/name@revision' on the hub.
        path: a folder with Parquet, Arrow or WebDataset files, in place of the hub.
        image_size: side in pixels of the images read.
        channels: 1 or 3.
        columns: of images and labels; empty: found by type, where there are several labels by name.

    Returns:
        The split `train`, and as test split the first labelled one of `test` and `validation`.

    Raises:
        InputError: `datasets` is missing; the data set is, or cannot be read; or it has no image or label column.
    """
    try:
        import datasets  # noqa: F401  optional and slow to import
    except ImportError as error:
        raise InputError(f"config.data.source='hf': {error}; pip install 'utilgen_jax[hf]'") from error
    splits = _open_folder(path) if path else _open_repository(name)
    where = path or name
    if "train" not in splits:
        raise InputError(f"{where}: has no split 'train'; its splits: {', '.join(splits) or 'none'}")
    try:
        return _sources(where, splits, path, image_size, channels, columns)
    except InputError:
        raise
    except Exception as error:  # of many kinds, where files are damaged
        raise InputError(f"{where}: cannot be read: {line_of(error)}") from error


def _sources(where: str, splits: Any, path: str, image_size: int, channels: int, columns: tuple[str, str]) -> Sources:
    import datasets

    features = splits["train"].features
    image = _choose(where, "image", columns[0], [key for key in features if isinstance(features[key], datasets.Image)])
    labelled = [key for key in features if isinstance(features[key], datasets.ClassLabel)]
    # Without class labels: numbers or words, under a usual name.
    plain = [key for key in features if isinstance(features[key], datasets.Value) and key in _LABEL_NAMES]
    label = _choose(where, "label", columns[1], labelled or plain)
    class_names = _class_names(features[label], splits["train"][label])

    def split(split_name: str) -> HfSource | None:
        if split_name not in splits:
            return None
        table = splits[split_name].cast_column(image, datasets.Image(decode=False))
        labels = _labels(f"{where}: {split_name}", table[label], class_names, features[label])
        if split_name != "train" and (labels < 0).all():  # a test split whose labels are secret
            return None
        ids = tuple(f"{split_name}/{index:05d}" for index in range(len(labels)))
        folder = Path(expand(path)) if path else None
        return HfSource(where, class_names, labels, ids, table[image], folder, image_size, channels)

    train = split("train")
    assert train is not None  # checked above
    return Sources(train=train, test=next(filter(None, map(split, _TEST_NAMES)), None))


def _open_folder(path: str) -> Any:
    import datasets

    folder = Path(expand(path))
    if not folder.is_dir():
        raise InputError(f"config.data.path={path!r} should be a folder of Parquet, Arrow or WebDataset files")
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder))
    except Exception as error:  # of many kinds
        raise InputError(f"{path}: cannot be read as Parquet, Arrow or WebDataset files: {line_of(error)}") from error


def _open_repository(name: str) -> Any:
    import datasets

    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"config.data.name={name!r} is no data set of the hub, such as 'uoft-cs/cifar10'")
    repository, revision = parts["name"], parts["revision"]
    is_reached = hub.list_files(repository, revision, "dataset") is not None
    try:
        with nullcontext() if is_reached else hub.offline():
            return datasets.load_dataset(repository, parts["config"], revision=revision)
    except ConnectionError as error:
        raise InputError(
            f"{name}: not on this machine, and the Hugging Face hub cannot be reached; "
            f"`hf download {repository} --repo-type dataset --local-dir FOLDER` on a machine that can, then "
            "--config.data.path=FOLDER"
        ) from error
    except Exception as error:  # of many kinds
        raise InputError(f"{name}: cannot be read: {line_of(error)}") from error


def _choose(where: str, kind: str, wanted: str, candidates: Sequence[str]) -> str:
    """The column of images or labels."""
    field = f"config.data.{kind}_column"
    if wanted:
        if wanted not in candidates:
            raise InputError(f"{field}={wanted!r}: {where} has no such column; possible: {', '.join(candidates)}")
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    usual = [name for name in _LABEL_NAMES if name in candidates]
    if kind == "label" and usual:
        return usual[0]
    found = f"has several {kind} columns, {', '.join(candidates)}" if candidates else f"has no {kind} column"
    raise InputError(f"{where}: {found}; name one by {field}")


def _class_names(feature: Any, values: Sequence[Any]) -> tuple[str, ...]:
    """The names of a class label's, or the different values of a plain column in their order."""
    if hasattr(feature, "names"):
        return tuple(feature.names)
    return tuple(str(value) for value in sorted({value for value in values if value is not None}))


def _labels(where: str, values: Sequence[Any], class_names: tuple[str, ...], feature: Any) -> np.ndarray:
    """Labels int32 [N]; -1 where a class label says so or there is none, InputError for a class that train lacks."""
    if hasattr(feature, "names"):
        return np.array([-1 if value is None else value for value in values], np.int32)
    number_of = {name: number for number, name in enumerate(class_names)}
    unknown = sorted({str(value) for value in values if value is not None and str(value) not in number_of})
    if unknown:
        raise InputError(f"{where}: has classes that train lacks: {', '.join(unknown[:5])}")
    return np.array([-1 if value is None else number_of[str(value)] for value in values], np.int32)
