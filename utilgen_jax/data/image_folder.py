"""A folder of images in a subfolder per class.

    <folder>/train/<class>/*.jpg        every format that Pillow decodes, grey or RGB, any size
    <folder>/test/<class>/*.jpg         else val/, validation/ or valid/; with none, the test images come from train/

Classes have the names of their folders. Classes and images are numbered in sorted order. Hidden files are passed over;
what else lies there and is not used is told in one line. Symbolic links are followed only inside <folder>.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utilgen_jax.data.formats import image_suffixes
from utilgen_jax.data.image_source import SizedSource, Sources
from utilgen_jax.data.images import open_image, read_encoded
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.buckets import local_copy
from utilgen_jax.runtime.notes import warn
from utilgen_jax.runtime.paths import expand

_TEST_NAMES = ("test", "val", "validation", "valid")  # the first one that there is
_OF_WINDOWS = ("Thumbs.db", "desktop.ini")  # hidden there
_SHOWN = 3  # of what is not used


@dataclasses.dataclass(frozen=True)
class FolderSource(SizedSource):
    """A split of the folder; an `ImageSource` whose ids are paths relative to the folder."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    folder: Path
    image_size: int
    channels: int

    def open(self, index: int) -> Image.Image:
        """See `ImageSource.open`."""
        path = self.folder / self.ids[index]
        return open_image(path, str(path), self.channels)

    def encoded(self, index: int) -> bytes:
        """See `ImageSource.encoded`."""
        return read_encoded(self.folder / self.ids[index])


def load(path: str, image_size: int, channels: int) -> Sources:
    """Lists the images of a folder without decoding them.

    Args:
        path: folder with `train/`.
        image_size: side in pixels of the images read; the shorter side is scaled to it, and the centre is cropped.
        channels: 1 or 3.

    Returns:
        The training split and the test split, if there is any.

    Raises:
        InputError: the layout is wrong, a class has no images, the splits have different classes, a folder cannot be
            read, or a link leaves the folder.
    """
    folder = Path(expand(path))
    if not _is_folder(folder / "train"):
        raise InputError(f"config.data.path={path!r} should be a folder with train/<class>/*.png (or jpg, ...)")
    listing = _Listing(folder)
    train = listing.split("train", image_size, channels)
    folders = [entry for entry in listing.visible(folder) if entry.is_dir()]
    held_out = next((name for name in _TEST_NAMES if folder / name in folders), None)
    test = None if held_out is None else listing.split(held_out, image_size, channels)
    listing.pass_over("folders beside train/", [entry for entry in folders if entry.name not in ("train", held_out)])
    if test is not None:
        for one, other, has, lacks in ((train, test, "train", held_out), (test, train, held_out, "train")):
            extra = sorted(set(one.class_names) - set(other.class_names))
            if extra:
                raise InputError(f"{folder}: {has}/ has classes that {lacks}/ lacks: {', '.join(extra)}")
    listing.tell()
    return Sources(train=train, test=test)


def load_for_training(path: str, image_size: int, channels: int) -> FolderSource:
    """Lists the images of a folder to train a generator on: its own, of one class, or those of its class folders.

    Args:
        path: folder with images, or with a folder for each class, perhaps under `train/`; it may be in a bucket.
        image_size, channels: see `load`.

    Raises:
        InputError: there are no images, a folder cannot be read, or a link leaves the folder.
    """
    folder = Path(local_copy(path))
    if not _is_folder(folder):
        raise InputError(f"{path}: is no folder")
    listing = _Listing(folder)
    if _is_folder(folder / "train"):
        source = listing.split("train", image_size, channels)
    elif any(_is_image(entry) for entry in listing.visible(folder)):
        own = listing.images(folder)
        class_name, labels = folder.resolve().name, np.zeros(len(own), np.int32)
        ids = tuple(image.name for image in own)
        source = FolderSource(str(folder), (class_name,), labels, ids, folder, image_size, channels)
    else:
        source = listing.split("", image_size, channels)
    listing.tell()
    return source


class _Listing:
    """Lists the images of a folder, and remembers what is not used.

    Args:
        folder: with the splits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._root = folder, Path(os.path.realpath(folder))
        self._unused: dict[str, list[Path]] = {}

    def split(self, split: str, image_size: int, channels: int) -> FolderSource:
        """Lists the class folders of a split, "" for the folder itself."""
        where = self._folder / split
        entries = self.visible(where)
        class_folders = [entry for entry in entries if entry.is_dir()]
        if not class_folders:
            raise InputError(f"{where} has no class folders; put images into {where}/<class>/")
        self.pass_over("files beside the class folders", [entry for entry in entries if not entry.is_dir()])
        found = [self.images(class_folder) for class_folder in class_folders]
        empty = [str(class_folder) for class_folder, images in zip(class_folders, found, strict=True) if not images]
        if empty:
            raise InputError(
                f"{', '.join(empty)} has no images of a format that Pillow reads; add some or remove the folder"
            )
        return FolderSource(
            name=str(self._folder),
            class_names=tuple(class_folder.name for class_folder in class_folders),
            labels=np.repeat(np.arange(len(found), dtype=np.int32), [len(images) for images in found]),
            ids=tuple(image.relative_to(self._folder).as_posix() for images in found for image in images),
            folder=self._folder,
            image_size=image_size,
            channels=channels,
        )

    def images(self, folder: Path) -> list[Path]:
        """The images that lie in a folder; the rest is passed over."""
        entries = self.visible(folder)
        images: list[Path] = []
        others: list[Path] = []
        for entry in entries:
            (images if _is_image(entry) else others).append(entry)
        self.pass_over("folders in folders of images", [entry for entry in others if entry.is_dir()])
        self.pass_over("files of no format that is read", [entry for entry in others if not entry.is_dir()])
        return images

    def visible(self, folder: Path) -> list[Path]:
        """The sorted entries of a folder without hidden ones.

        Raises:
            InputError: the folder cannot be read, a name is no text, or an entry is a link out of the root.
        """
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        entries = [folder / name for name in names if not name.startswith(".") and name not in _OF_WINDOWS]
        for entry in (folder, *entries):
            if not _is_text(entry.name):
                shown = entry.name.encode("utf-8", "backslashreplace").decode()
                raise InputError(f"{folder}: the name {shown!r} is not UTF-8; rename it")
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(self._root):
                raise InputError(f"{entry} is a link out of {self._root}; copy its target into the folder")
        return entries

    def pass_over(self, kind: str, entries: Sequence[Path]) -> None:
        """Remembers entries that are not used."""
        self._unused.setdefault(kind, []).extend(entry.relative_to(self._folder) for entry in entries)

    def tell(self) -> None:
        """Warns of what is not used, in one line."""
        parts = []
        for kind, paths in self._unused.items():
            if paths:
                endings = Counter(path.suffix.lower() or path.name for path in paths).most_common()
                names = [f"{ending} {count}" for ending, count in endings] if len(paths) > _SHOWN else map(str, paths)
                shown = list(names)
                more = ", ..." if len(shown) > _SHOWN else ""
                parts.append(f"{kind}: {len(paths)} ({', '.join(shown[:_SHOWN])}{more})")
        if parts:
            warn(f"{self._folder}: not used: {'; '.join(parts)}")


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in image_suffixes() and not entry.is_dir()


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; not where a folder above it may not be read."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
