"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, without a test split."""

import numpy as np

from utilgen_jax.data.image_source import ArraySource, Sources

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load(image_size: int, channels: int) -> Sources:
    """Reads the digits.

    Args:
        image_size: side in pixels of the images read; the original side is 8.
        channels: 1 or 3.

    Returns:
        All images as the training split, without a test split. Grey levels 0..16 are scaled to 0..255.
    """
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    source = ArraySource(
        name="digits",
        class_names=CLASS_NAMES,
        labels=digits.target.astype(np.int32),
        ids=tuple(f"digits/{index:04d}" for index in range(len(images))),
        images=images,
        image_size=image_size,
        channels=channels,
    )
    return Sources(train=source, test=None)
