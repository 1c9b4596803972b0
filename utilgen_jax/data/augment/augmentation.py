"""Augmentation of batches of uint8 images on the host."""

from collections.abc import Callable, Mapping

import numpy as np

from utilgen_jax.data.augment.randaugment import randaugment


def flip_crop(images: np.ndarray, rng: np.random.Generator, margin: int = 4) -> np.ndarray:
    """CIFAR's standard augmentation: random crops of the zero-padded image, and random horizontal flips.

    Args:
        images: uint8 [B, H, W, C].
        rng: random generator.
        margin: padding in pixels on each side.

    Returns:
        uint8 [B, H, W, C].
    """
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    top, left = rng.integers(2 * margin + 1, size=(2, batch))
    cropped = windows[np.arange(batch), top, left].transpose(0, 2, 3, 1)
    is_mirrored = rng.random((batch, 1, 1, 1)) < 0.5
    return np.where(is_mirrored, cropped[:, :, ::-1], cropped)


# name -> (uint8 [B, H, W, C], rng) -> the same shape
AUGMENTATIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none": lambda images, rng: images,
    "flip_crop": flip_crop,
    "randaugment": lambda images, rng: randaugment(flip_crop(images, rng), rng, fill=128),
}
