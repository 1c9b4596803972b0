"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): random operations of a common magnitude."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Scale of the magnitude, as in torchvision.
MAX_MAGNITUDE = 30

# (image, amount in [-1, 1], grey level outside the image) -> image
Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    def apply(image: Image.Image, amount: float, fill: int) -> Image.Image:
        colour = (fill,) * len(image.getbands())
        return image.transform(image.size, Image.Transform.AFFINE, matrix(image, amount), fillcolor=colour)

    return apply


def _rotate(image: Image.Image, amount: float, fill: int) -> Image.Image:
    return image.rotate(30 * amount, fillcolor=(fill,) * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, amount, fill: enhancer(image).enhance(1 + 0.9 * amount)


def _posterize(image: Image.Image, amount: float, fill: int) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(amount)))


def _solarize(image: Image.Image, amount: float, fill: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - round(256 * abs(amount)))


# The paper's 14 operations. The sign of the amount is random.
OPERATIONS: Mapping[str, Operation] = {
    "identity": lambda image, amount, fill: image,
    "autocontrast": lambda image, amount, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, amount, fill: ImageOps.equalize(image),
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _enhance(ImageEnhance.Color),
    "posterize": _posterize,
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda image, amount: (1, 0.3 * amount, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, amount: (1, 0, 0, 0.3 * amount, 1, 0)),
    "translate_x": _affine(lambda image, amount: (1, 0, round(150 / 331 * image.width * amount), 0, 1, 0)),
    "translate_y": _affine(lambda image, amount: (1, 0, 0, 0, 1, round(150 / 331 * image.height * amount))),
}


def randaugment(
    images: np.ndarray, rng: np.random.Generator, num_operations: int = 2, magnitude: float = 9, fill: int = 0
) -> np.ndarray:
    """Applies `num_operations` random operations to each image, drawn with replacement.

    Amounts are proportional to the magnitude. At the largest magnitude, as in torchvision: rotation by 30°, shear by
    0.3, translation by 45 % of the side, colour, contrast, brightness and sharpness times 1 ± 0.9, 4 bits of 8, and all
    pixels inverted.

    Args:
        images: uint8 [B, H, W, C], C 1 or 3.
        rng: random generator.
        num_operations: operations per image, N in the paper.
        magnitude: magnitude in [0, 30], M in the paper.
        fill: grey level in [0, 255] outside the image.

    Returns:
        uint8 [B, H, W, C].
    """
    operations = list(OPERATIONS.values())
    chosen = rng.integers(len(operations), size=(len(images), num_operations))
    amounts = rng.choice((-1, 1), size=chosen.shape) * magnitude / MAX_MAGNITUDE
    out = np.empty_like(images)
    for row, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        for index, amount in zip(chosen[row], amounts[row], strict=True):
            image = operations[index](image, float(amount), fill)
        out[row] = np.asarray(image).reshape(pixels.shape)
    return out
