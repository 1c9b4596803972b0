"""Measures an image of a digit in the terms in which the glyph domain's images are made and described.

The ground's brightness is that of the border; ink is what differs from it, bright or dark. All lengths are taken on
the image scaled to the glyph domain's size, where a small image is as blurred as the glyph domain's blurred ones.
Nothing here was fitted to real images; the constants are those at which measures of renderings meet their attributes.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from utilgen_jax.data.images import plain_image
from utilgen_jax.pretraining.glyphs import IMAGE_SIZE
from utilgen_jax.pretraining.vocabulary import TYPICAL_ASPECT

# The lean (see `_lean`) of each digit rendered upright, the mean over the fonts: a 7 leans right though it is upright.
TYPICAL_LEAN = (-0.01, -0.08, 0.005, -0.005, 0.0, -0.04, -0.005, 0.06, -0.015, -0.01)

_FAINTEST = 0.1  # contrast of 1 below which an image is taken for empty
_INK = 0.45  # the edge of the ink, of 1 for full ink
_ENLARGE = 4  # edges are found between pixels, by linear interpolation
# Four times the mean distance to the edge is the width of an endless stroke; ends and bends lessen it.
_STROKE_ENDS = 1.15
_GRAIN = 0.025  # of 1 for full ink; grainy images have 0.03 and more
_SHARP = 0.6  # the steepest edges of a sharp image rise by more than this in a pixel, of a blurred one by less


@dataclasses.dataclass(frozen=True)
class GlyphMeasures:
    """What can be measured of an image, in the units of `vocabulary.GlyphAttributes`.

    Attributes:
        weight, slant, size, x, y, noise: As there.
        width: As there; None where no digit is known whose typical width could be the unit.
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
        digit: What it shows, 0 to 9; None: something else, which is measured as if upright meant no lean at all.

    Returns:
        The measures; None of an image that shows nothing.
    """
    pixels = _scale(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = np.abs(pixels - np.median(border))
    peak = float(np.percentile(contrast, 99))
    if peak < _FAINTEST:
        return None
    ink = np.clip(contrast / peak, 0.0, 1.0)
    # A ground around it, so that ink that touches the image's border has an edge there too.
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
    """An image as the glyph domain would show it: grey, float [IMAGE_SIZE, IMAGE_SIZE] in [0, 1]."""
    grey = plain_image(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), 1)
    # The kernel of the glyph domain's blurred images; where it scales down it also smooths.
    return np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)) / 255.0


def _lean(ink: np.ndarray) -> float:
    """The slope of the regression of place on height: a shear by s, to the right going up, adds exactly s to it."""
    ink = np.where(ink > 0.1, ink, 0.0)
    rows, columns = np.indices(ink.shape)
    share = ink / ink.sum()
    rows, columns = rows - (share * rows).sum(), columns - (share * columns).sum()
    # Ink of a single row has no slope.
    return float(-(share * rows * columns).sum() / max((share * rows**2).sum(), 1e-6))


def _sharp_stroke(inside: np.ndarray) -> float:
    """The mean width of strokes, in pixels before enlarging, from the distance to their edges."""
    distance = ndimage.distance_transform_edt(inside)[inside].mean() - 0.5
    return float(_STROKE_ENDS * 4 * distance / _ENLARGE)


def _blurred_stroke(ink: np.ndarray, peak: float) -> float:
    """The mean width of strokes, in pixels, from their area and their length.

    A stroke w wide and l long has an area of w·l, and brightness changes by 2·l times its peak around it. Blur leaves
    the area, and lowers the peak, by which `ink` has been divided.
    """
    ink = np.pad(np.where(ink > 0.1, ink, 0.0), 1)
    variation = np.hypot(np.diff(ink, axis=1)[:-1], np.diff(ink, axis=0)[:, :-1]).sum()
    return float(peak * 2 * ink.sum() / variation)


def _noise(pixels: np.ndarray, ink: np.ndarray) -> str:
    """One of `vocabulary.NOISES`: the steepest edges tell what is blurred, the ground off the ink what is grainy."""
    steps = np.concatenate([np.abs(np.diff(ink, axis=axis)).ravel() for axis in (0, 1)])
    if np.sort(steps)[-20:].mean() < _SHARP:
        return "blurred"
    ground = pixels[~ndimage.binary_dilation(ink > _INK, iterations=3)]
    return "grainy" if ground.size and ground.std() > _GRAIN else "clean"
