"""Near-duplicates: synthetic images that hardly differ from one before them, or from a real image."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 16  # pixels at which images are compared
LARGEST_DIFFERENCE = 0.03  # root mean square over all pixels in [0, 1]
_AT_ONCE = 1024


def near_duplicates(
    images: np.ndarray, labels: np.ndarray, originals: np.ndarray, original_labels: np.ndarray, is_same: bool
) -> np.ndarray:
    """Finds for each image the first original of its class that it hardly differs from.

    Args:
        images: uint8 [M, H, W, 3].
        labels: int [M].
        originals: uint8 [N, h, w, C].
        original_labels: int [N].
        is_same: the originals are the images themselves: only those before an image count.

    Returns:
        Int [M], the row of the original; -1 where there is none.
    """
    found = np.full(len(images), -1)
    for label in np.unique(labels):
        own, others = np.flatnonzero(labels == label), np.flatnonzero(original_labels == label)
        if not len(others):
            continue
        there = _small(originals[others])
        lengths = np.sum(there**2, axis=1)
        here = there if is_same else _small(images[own])
        for start in range(0, len(own), _AT_ONCE):
            part = here[start : start + _AT_ONCE]
            squares = np.sum(part**2, axis=1)[:, None] + lengths - 2 * part @ there.T
            near = squares <= part.shape[1] * LARGEST_DIFFERENCE**2
            if is_same:
                near &= np.arange(len(others)) < np.arange(start, start + len(part))[:, None]
            hit = near.any(1)
            found[own[start : start + len(part)][hit]] = others[near.argmax(1)[hit]]
    return found


def _small(images: np.ndarray) -> np.ndarray:
    """Images as float32 [N, SIDE * SIDE * 3] in [0, 1]."""
    grey = images.shape[-1] == 1
    shrunk = [
        np.asarray(
            Image.fromarray(image[..., 0] if grey else image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        )
        for image in images
    ]
    return np.stack(shrunk).reshape(len(images), -1).astype(np.float32) / 255
