"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): a few operations drawn at random, all of one magnitude."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# The magnitudes' scale, as in torchvision: 9 of 30 is mild, and larger is always stronger.
MAX_MAGNITUDE = 30

# (picture, amount in [-1, 1], grey level of what comes in from outside) -> picture
Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    def apply(picture: Image.Image, amount: float, fill: int) -> Image.Image:
        colour = (fill,) * len(picture.getbands())
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix(picture, amount), fillcolor=colour)

    return apply


def _rotate(picture: Image.Image, amount: float, fill: int) -> Image.Image:
    return picture.rotate(30 * amount, fillcolor=(fill,) * len(picture.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, amount, fill: enhancer(picture).enhance(1 + 0.9 * amount)


def _posterize(picture: Image.Image, amount: float, fill: int) -> Image.Image:
    return ImageOps.posterize(picture, 8 - round(4 * abs(amount)))


def _solarize(picture: Image.Image, amount: float, fill: int) -> Image.Image:
    return ImageOps.solarize(picture, 256 - round(256 * abs(amount)))


# The paper's 14. The sign of the amount is drawn: which way to turn, shift or change.
OPERATIONS: Mapping[str, Operation] = {
    "identity": lambda picture, amount, fill: picture,
    "autocontrast": lambda picture, amount, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, amount, fill: ImageOps.equalize(picture),
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _enhance(ImageEnhance.Color),
    "posterize": _posterize,
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda picture, amount: (1, 0.3 * amount, 0, 0, 1, 0)),
    "shear_y": _affine(lambda picture, amount: (1, 0, 0, 0.3 * amount, 1, 0)),
    "translate_x": _affine(lambda picture, amount: (1, 0, round(150 / 331 * picture.width * amount), 0, 1, 0)),
    "translate_y": _affine(lambda picture, amount: (1, 0, 0, 0, 1, round(150 / 331 * picture.height * amount))),
}


def randaugment(
    images: np.ndarray, rng: np.random.Generator, num_operations: int = 2, magnitude: float = 9, fill: int = 0
) -> np.ndarray:
    """Applies `num_operations` operations to each picture, drawn with replacement, one after the other.

    At the largest magnitude: rotation by 30°, shear by 0.3, shift by 45 % of the side, colour, contrast, brightness and
    sharpness times 1 ± 0.9, 4 bits of 8, and all pixels inverted; in between, in proportion. (torchvision's ranges; a
    batch of 64 pictures of 32×32 takes a few milliseconds.)

    Args:
      images: uint8 [B, H, W, C], C 1 or 3.
      rng: the draws.
      num_operations: N.
      magnitude: M in [0, 30].
      fill: grey level in [0, 255] of what turning, shearing and shifting let in from outside.

    Returns:
      uint8 [B, H, W, C].
    """
    operations = list(OPERATIONS.values())
    chosen = rng.integers(len(operations), size=(len(images), num_operations))
    amounts = rng.choice((-1, 1), size=chosen.shape) * magnitude / MAX_MAGNITUDE
    out = np.empty_like(images)
    for row, pixels in enumerate(images):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        for index, amount in zip(chosen[row], amounts[row], strict=True):
            picture = operations[index](picture, float(amount), fill)
        out[row] = np.asarray(picture).reshape(pixels.shape)
    return out
