"""A folder of images sorted into classes, the easiest way to bring one's own.

    <folder>/train/<class>/*.jpg        png, jpg, jpeg, bmp and webp; grey or RGB, any size
    <folder>/test/<class>/*.jpg         or val/; with neither, all train images but the shots can be test

A class is called what its folder is called, classes are numbered in sorted order, and so are images. Hidden files and
files of other kinds are passed over. Symbolic links are followed only where they stay inside <folder>.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utilgen_jax.data.image_source import Sources
from utilgen_jax.data.images import decode_image
from utilgen_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """One split of the folder; an `ImageSource` whose ids are the paths below the folder."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]
    folder: Path
    image_size: int
    channels: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, image_size, image_size, channels]; see `ImageSource.read`."""
        out = np.empty((len(indices), self.image_size, self.image_size, self.channels), np.uint8)
        for row, index in enumerate(indices):
            path = self.folder / self.ids[index]
            out[row] = decode_image(path, str(path), self.image_size, self.channels)
        return out


def load(path: str, image_size: int, channels: int) -> Sources:
    """Lists the images of a folder; none is decoded yet.

    Args:
        path: The folder that holds `train/`.
        image_size: Side in pixels of the images read: the shorter side is scaled to it, the middle is kept.
        channels: 1 or 3.

    Returns:
        Train and test (`test/`, else `val/`, else None).

    Raises:
        InputError: No such layout, a class without an image, other classes in test than in train, a link that leaves
            the folder.
    """
    folder = Path(path)
    if not (folder / "train").is_dir():
        raise InputError(f"config.data.path={path!r} should be a folder that holds train/<class>/*.png (or jpg, ...)")
    train = _load_split(folder, "train", image_size, channels)
    held_out = next((name for name in ("test", "val") if (folder / name).is_dir()), None)
    if held_out is None:
        return Sources(train=train, test=None)
    test = _load_split(folder, held_out, image_size, channels)
    for one, other, has, lacks in ((train, test, "train", held_out), (test, train, held_out, "train")):
        extra = sorted(set(one.class_names) - set(other.class_names))
        if extra:
            raise InputError(f"{folder}: {has}/ has classes that {lacks}/ lacks: {', '.join(extra)}; mend the folders")
    return Sources(train=train, test=test)


def _load_split(folder: Path, split: str, image_size: int, channels: int) -> FolderSource:
    root = folder.resolve()
    class_folders = [entry for entry in _visible(folder / split, root) if entry.is_dir()]
    if not class_folders:
        raise InputError(f"{folder / split} holds no class folder; put images into {folder / split}/<class>/")
    labels: list[int] = []
    ids: list[str] = []
    for label, class_folder in enumerate(class_folders):
        images = [entry for entry in _visible(class_folder, root) if entry.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(f"{class_folder} holds no image ({', '.join(SUFFIXES)}); add some or remove the folder")
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
    """The entries of a folder, sorted, without hidden ones; no link among them, nor the folder itself, leaves root."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in (folder, *entries):
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise InputError(f"{entry} is a link that leaves {root}; copy what it points to into the folder")
    return entries
