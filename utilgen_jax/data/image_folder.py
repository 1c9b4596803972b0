"""A folder of images in a subfolder per class.

    <folder>/train/<class>/*.jpg        png, jpg, jpeg, bmp and webp; grey or RGB, any size
    <folder>/test/<class>/*.jpg         or val/; with neither, the test images come from train/

Classes have the names of their folders. Classes and images are numbered in sorted order. Hidden files and other file
types are ignored. Symbolic links are followed only inside <folder>.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from utilgen_jax.data.image_source import SizedSource, Sources
from utilgen_jax.data.images import open_image
from utilgen_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


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


def load(path: str, image_size: int, channels: int) -> Sources:
    """Lists the images of a folder without decoding them.

    Args:
        path: folder with `train/`.
        image_size: side in pixels of the images read; the shorter side is scaled to it, and the centre is cropped.
        channels: 1 or 3.

    Returns:
        The training split and the test split (`test/`, else `val/`, else None).

    Raises:
        InputError: the layout is wrong, a class has no images, the splits have different classes, or a link leaves the
            folder.
    """
    folder = Path(path)
    if not (folder / "train").is_dir():
        raise InputError(f"config.data.path={path!r} should be a folder with train/<class>/*.png (or jpg, ...)")
    train = _load_split(folder, "train", image_size, channels)
    held_out = next((name for name in ("test", "val") if (folder / name).is_dir()), None)
    if held_out is None:
        return Sources(train=train, test=None)
    test = _load_split(folder, held_out, image_size, channels)
    for one, other, has, lacks in ((train, test, "train", held_out), (test, train, held_out, "train")):
        extra = sorted(set(one.class_names) - set(other.class_names))
        if extra:
            raise InputError(f"{folder}: {has}/ has classes that {lacks}/ lacks: {', '.join(extra)}")
    return Sources(train=train, test=test)


def load_for_training(path: str, image_size: int, channels: int) -> FolderSource:
    """Lists the images of a folder to train a generator on: its own, of one class, or those of its class folders.

    Args:
        path: folder with images, or with a folder for each class, perhaps under `train/`.
        image_size, channels: see `load`.

    Raises:
        InputError: there are no images, or a link leaves the folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{path}: is no folder")
    if (folder / "train").is_dir():
        return _load_split(folder, "train", image_size, channels)
    own = [entry for entry in _visible(folder, folder.resolve()) if entry.suffix.lower() in SUFFIXES]
    if not own:
        return _load_split(folder, "", image_size, channels)
    return FolderSource(
        name=str(folder),
        class_names=(folder.resolve().name,),
        labels=np.zeros(len(own), np.int32),
        ids=tuple(image.name for image in own),
        folder=folder,
        image_size=image_size,
        channels=channels,
    )


def _load_split(folder: Path, split: str, image_size: int, channels: int) -> FolderSource:
    root = folder.resolve()
    class_folders = [entry for entry in _visible(folder / split, root) if entry.is_dir()]
    if not class_folders:
        raise InputError(f"{folder / split} has no class folders; put images into {folder / split}/<class>/")
    labels: list[int] = []
    ids: list[str] = []
    for label, class_folder in enumerate(class_folders):
        images = [entry for entry in _visible(class_folder, root) if entry.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(f"{class_folder} has no images ({', '.join(SUFFIXES)}); add some or remove the folder")
        ids.extend(image.relative_to(folder).as_posix() for image in images)
        labels.extend([label] * len(images))
    return FolderSource(
        name=str(folder),
        class_names=tuple(class_folder.name for class_folder in class_folders),
        labels=np.array(labels, np.int32),
        ids=tuple(ids),
        folder=folder,
        image_size=image_size,
        channels=channels,
    )


def _visible(folder: Path, root: Path) -> list[Path]:
    """Returns the sorted entries of a folder without hidden ones; InputError if any of them is a link out of root."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in (folder, *entries):
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise InputError(f"{entry} is a link out of {root}; copy its target into the folder")
    return entries
