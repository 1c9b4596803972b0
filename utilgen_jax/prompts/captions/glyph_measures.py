"""Measures the attributes of the glyph domain in an image of a digit.

The background has the brightness of the border; ink is what differs from it, bright or dark. Lengths are measured on
the image scaled to the glyph domain's size, where small images are as blurred as the domain's blurred ones. The
constants make the measures of rendered glyphs agree with their attributes; none is fitted to real images.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from utilgen_jax.data.images import plain_image
from utilgen_jax.prompts.glyph_vocabulary import IMAGE_SIZE, TYPICAL_ASPECT

# The lean (see `_lean`) of each upright digit, averaged over the fonts: an upright 7 leans right.
TYPICAL_LEAN = (-0.01, -0.08, 0.005, -0.005, 0.0, -0.04, -0.005, 0.06, -0.015, -0.01)

_FAINTEST = 0.1  # contrast in [0, 1] below which an image counts as empty
_INK = 0.45  # threshold of the ink, where full ink is 1
_ENLARGE = 4  # factor of the linear interpolation that locates edges between pixels
# The width of an infinite stroke is four times the mean distance to its edge; ends and bends reduce it.
_STROKE_ENDS = 1.15
_GRAIN = 0.025  # standard deviation of the background, where full ink is 1; grainy images have 0.03 or more
_SHARP = 0.6  # rise per pixel of the steepest edges that separates sharp from blurred images


@dataclasses.dataclass(frozen=True)
class GlyphMeasures:
    """Measures of an image, in the units of `vocabulary.GlyphAttributes`.

    Attributes:
        weight: stroke width over ink height.
        slant: tangent of the slant angle.
        width: width over the typical width of the digit; None if the digit is unknown.
        size: ink height over image height.
        x: horizontal offset of the ink box.
        y: vertical offset of the ink box.
        noise: one of `vocabulary.NOISES`.
    """

    weight: float
    slant: float
    width: float | None
    size: float
    x: float
    y: float
    noise: str


def measure(image: np.ndarray, digit: int | None) -> GlyphMeasures | None:
    """Measures an image.

    Args:
        image: uint8 [S, S, C], C 1 or 3, any S.
        digit: the digit, 0 to 9; None for another class, whose typical lean is taken to be 0.

    Returns:
        The measures; None for an empty image.
    """
    pixels = _scale(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = np.abs(pixels - np.median(border))
    peak = float(np.percentile(contrast, 99))
    if peak < _FAINTEST:
        return None
    ink = np.clip(contrast / peak, 0.0, 1.0)
    # Padding, so that ink at the image border has an edge there.
    enlarged = ndimage.zoom(np.pad(ink, 1), _ENLARGE, order=1, grid_mode=True, mode="grid-constant")
    inside = enlarged > _INK
    rows, columns = np.nonzero(inside)
    top, bottom, left, right = (
        float(edge) / _ENLARGE - 1 for edge in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    )
    height = bottom - top
    slant = _lean(ink) - (0.0 if digit is None else TYPICAL_LEAN[digit])
    upright = columns + slant * rows
    upright_width = (upright.max() - upright.min() + 1) / _ENLARGE
    noise = _noise(pixels, ink)
    stroke = _blurred_stroke(ink, peak) if noise == "blurred" else _sharp_stroke(inside)
    return GlyphMeasures(
        weight=stroke / height,
        slant=slant,
        width=None if digit is None else float(upright_width / height / TYPICAL_ASPECT[digit]),
        size=height / IMAGE_SIZE,
        x=(left + right) / 2 / IMAGE_SIZE - 0.5,
        y=(top + bottom) / 2 / IMAGE_SIZE - 0.5,
        noise=noise,
    )


def _scale(image: np.ndarray) -> np.ndarray:
    """Converts an image to the glyph domain's format: grey, float [IMAGE_SIZE, IMAGE_SIZE] in [0, 1]."""
    grey = plain_image(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), 1)
    # The same kernel as for the glyph domain's blurred images; it smooths when scaling down.
    return np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)) / 255.0


def _lean(ink: np.ndarray) -> float:
    """Returns the slope of the regression of horizontal on vertical position; a shear by s adds exactly s."""
    ink = np.where(ink > 0.1, ink, 0.0)
    rows, columns = np.indices(ink.shape)
    share = ink / ink.sum()
    rows, columns = rows - (share * rows).sum(), columns - (share * columns).sum()
    # The ink of a single row has no slope.
    return float(-(share * rows * columns).sum() / max((share * rows**2).sum(), 1e-6))


def _sharp_stroke(inside: np.ndarray) -> float:
    """Returns the mean stroke width, in pixels before enlarging, from the distance to the edges."""
    distance = ndimage.distance_transform_edt(inside)[inside].mean() - 0.5
    return float(_STROKE_ENDS * 4 * distance / _ENLARGE)


def _blurred_stroke(ink: np.ndarray, peak: float) -> float:
    """Returns the mean stroke width, in pixels, from the area and the length of the strokes.

    A stroke of width w and length l has the area w·l and a total variation of 2·l times its peak. Blur keeps the area
    and lowers the peak, by which `ink` has been divided.
    """
    ink = np.pad(np.where(ink > 0.1, ink, 0.0), 1)
    variation = np.hypot(np.diff(ink, axis=1)[:-1], np.diff(ink, axis=0)[:, :-1]).sum()
    return float(peak * 2 * ink.sum() / variation)


def _noise(pixels: np.ndarray, ink: np.ndarray) -> str:
    """Classifies the noise as one of `vocabulary.NOISES`, by the steepest edges and the background's deviation."""
    steps = np.concatenate([np.abs(np.diff(ink, axis=axis)).ravel() for axis in (0, 1)])
    if np.sort(steps)[-20:].mean() < _SHARP:
        return "blurred"
    ground = pixels[~ndimage.binary_dilation(ink > _INK, iterations=3)]
    return "grainy" if ground.size and ground.std() > _GRAIN else "clean"
