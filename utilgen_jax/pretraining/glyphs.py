"""Printed digits, rendered deterministically: a seed and an index determine the image and its caption.

Each font's digits are converted once to distance fields of high resolution, which an image samples: the stroke weight
is a threshold on the field; slant, width, size, position and rotation are an affine map; the warp is a smooth
displacement. As in digit data sets, most digits are centred and fill the height.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, spatial

from utilgen_jax.prompts import glyph_vocabulary
from utilgen_jax.prompts.glyph_vocabulary import IMAGE_SIZE, GlyphAttributes


class Font(NamedTuple):
    """A font of matplotlib: its file, the code point of its zero, and its slant (tangent)."""

    file: str
    zero: int = ord("0")
    slant: float = 0.0


# By style and name. Obliques are left out, as slant is an attribute. The mathematical digits of STIX are separate
# designs: sans (U+1D7E2), sans bold (U+1D7EC), monospace (U+1D7F6).
FONTS: dict[str, dict[str, Font]] = {
    "sans": {
        "dejavu-sans": Font("DejaVuSans.ttf"),
        "dejavu-sans-bold": Font("DejaVuSans-Bold.ttf"),
        "computer-modern-sans": Font("cmss10.ttf"),
        "stix-sans": Font("STIXGeneral.ttf", zero=0x1D7E2),
        "stix-sans-bold": Font("STIXGeneralBol.ttf", zero=0x1D7EC),
    },
    "serif": {
        "dejavu-serif": Font("DejaVuSerif.ttf"),
        "dejavu-serif-bold": Font("DejaVuSerif-Bold.ttf"),
        "computer-modern": Font("cmr10.ttf"),
        "computer-modern-bold": Font("cmb10.ttf"),
        "stix": Font("STIXGeneral.ttf"),
        "stix-bold": Font("STIXGeneralBol.ttf"),
    },
    "typewriter": {
        "dejavu-mono": Font("DejaVuSansMono.ttf"),
        "dejavu-mono-bold": Font("DejaVuSansMono-Bold.ttf"),
        "computer-modern-typewriter": Font("cmtt10.ttf"),
        "stix-mono": Font("STIXGeneral.ttf", zero=0x1D7F6),
    },
    "italic": {
        "dejavu-serif-italic": Font("DejaVuSerif-Italic.ttf", slant=0.2),
        "computer-modern-italic": Font("cmti10.ttf", slant=0.25),
        "stix-italic": Font("STIXGeneralItalic.ttf", slant=0.27),
        "stix-bold-italic": Font("STIXGeneralBolIta.ttf", slant=0.27),
    },
}
DOTTED_ZERO = ("dejavu-mono", "dejavu-mono-bold")  # their zero has a dot inside, unlike all others; not used

_FONT_SIZE = 160  # pixels per em; a digit's ink is about 115 pixels high
_MARGIN = 40  # pixels of background around the ink, for bold strokes
_SUPERSAMPLE = 2
_WIDEST = 1.0  # largest ink width, over the image's width
_GAP = 0.07  # smallest width of the gap between strokes, over the ink height, where the font has a gap
_JITTER = 0.02  # largest offset of a centred glyph, over the image's side


@dataclasses.dataclass(frozen=True)
class _Outline:
    """An upright digit of a font. Lengths are in ink heights; the origin is the ink box's centre, y points down."""

    distance: np.ndarray  # [h, w] float32, signed distance to the edge, positive in the ink
    to_spine: np.ndarray  # [h, w] float32, distance to the strokes' centre lines
    to_gap: np.ndarray  # [h, w] float32, distance to the centre lines of the gaps between strokes
    hull: np.ndarray  # [points, 2] (x, y), convex hull of the ink
    hull_to_spine: np.ndarray  # [points], `to_spine` at these points
    ink_height: int  # pixels of the fields
    aspect: float  # ink width
    stroke: float  # mean stroke width


@functools.cache
def _outline(name: str, digit: int) -> _Outline:
    font = next(fonts[name] for fonts in FONTS.values() if name in fonts)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font.file
    face = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
    ImageDraw.Draw(canvas).text((_FONT_SIZE // 2, _FONT_SIZE // 2), chr(font.zero + digit), fill=255, font=face)
    upright = (1.0, -font.slant, font.slant * _FONT_SIZE, 0.0, 1.0, 0.0)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, upright, Image.Resampling.BILINEAR)
    rows, columns = np.nonzero(np.asarray(canvas) > 127)
    ink = np.asarray(canvas)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] > 127
    height, width = ink.shape
    ink = np.pad(ink, _MARGIN)
    inside, outside = ndimage.distance_transform_edt(ink), ndimage.distance_transform_edt(~ink)
    # On a stroke's centre line, and in the middle of a gap, the distance to the edge has a maximum: its gradient
    # vanishes.
    spine = ink & (np.hypot(*np.gradient(inside)) < 0.6)
    gap = ~ink & (np.hypot(*np.gradient(outside)) < 0.6)
    to_spine = (ndimage.distance_transform_edt(~spine) / height).astype(np.float32)
    points = np.argwhere(ink)
    hull = points[spatial.ConvexHull(points).vertices]
    return _Outline(
        distance=((inside - outside + np.where(ink, -0.5, 0.5)) / height).astype(np.float32),
        to_spine=to_spine,
        to_gap=(ndimage.distance_transform_edt(~gap) / height).astype(np.float32),
        hull=(hull - (np.array(ink.shape) - 1) / 2)[:, ::-1] / height,
        hull_to_spine=to_spine[tuple(hull.T)],
        ink_height=height,
        aspect=width / height,
        # The mean distance to the edge of a stroke of width w is w / 4.
        stroke=float(4 * inside[ink].mean() / height),
    )


def sample_attributes(seed: int, index: int) -> GlyphAttributes:
    """Draws the attributes of image `index` of the corpus `seed`.

    The digit is `index % 10`, so that consecutive images are balanced. The other attributes are independent, except
    that off-centre and wide glyphs are scaled to stay inside the image, and small ones are not blurred beyond
    recognition.

    Args:
        seed: non-negative number of the corpus.
        index: non-negative number of the image.

    Returns:
        The attributes. About two thirds of the glyphs are large, 15 % off centre, and half clean.
    """
    # The ranges follow printed text and the documented framing of digit data sets, in which the ink fills the box.
    # They are not tuned to real images or to any accuracy on them.
    rng = np.random.default_rng([seed, index])
    digit = index % 10
    style = str(rng.choice(glyph_vocabulary.STYLES))
    font = str(rng.choice([name for name in FONTS[style] if digit != 0 or name not in DOTTED_ZERO]))
    size = rng.uniform(*[(0.85, 1.0), (0.60, 0.85), (0.42, 0.60)][rng.choice(3, p=(0.7, 0.15, 0.15))])
    x, y = rng.uniform(-_JITTER, _JITTER, size=2)
    if rng.random() < 0.15:
        offset = rng.choice((-1, 1)) * rng.uniform(0.10, 0.24)
        x, y = (offset, y) if rng.random() < 0.5 else (x, offset)
        size = min(size, 1.0 - 2 * abs(offset))
    noise = str(rng.choice(glyph_vocabulary.NOISES, p=(0.5, 0.2, 0.3) if size > 0.6 else (0.7, 0.3, 0.0)))
    attributes = GlyphAttributes(
        digit=digit,
        style=style,
        font=font,
        weight=rng.uniform(0.06, 0.24),
        slant=float(np.clip(rng.normal(0.05, 0.2), -0.45, 0.5)),
        width=float(np.clip(np.exp(rng.normal(0.0, 0.2)), 0.65, 1.6)),
        size=float(size),
        x=float(x),
        y=float(y),
        noise=noise,
        grain=rng.uniform(0.05, 0.14) if noise == "grainy" else 0.0,
        rotation=float(np.clip(rng.normal(0.0, 0.06), -0.15, 0.15)),
        warp=rng.uniform(0.0, 0.04),
        texture_seed=int(rng.integers(2**63)),
    )
    return dataclasses.replace(attributes, width=_lay_out(attributes).width)


class _Layout(NamedTuple):
    matrix: np.ndarray  # [2, 2]; image position in pixels = matrix @ outline coordinate + offset
    offset: np.ndarray  # [2]
    grow: float  # outward shift of the outline, in ink heights
    least: float  # smallest half-width of a stroke, in ink heights
    width: float  # `GlyphAttributes.width`, reduced where the ink would not fit into the image


def _lay_out(attributes: GlyphAttributes) -> _Layout:
    outline = _outline(attributes.font, attributes.digit)
    aspect = attributes.width * glyph_vocabulary.TYPICAL_ASPECT[attributes.digit]
    # Growing the outline by g gives strokes of width (w + 2 g) and ink of height (1 + 2 g). Stretching thickens only
    # upright strokes; the root balances the thickness of all strokes.
    weight = attributes.weight / np.sqrt(aspect / outline.aspect)
    grow = (weight - outline.stroke) / (2 * (1 - weight))
    target = stretch = aspect * (1 + 2 * grow) / (outline.aspect + 2 * grow)
    # Thin strokes of a font with contrast would vanish when shrunk: all keep two thirds of the mean stroke width.
    least = (outline.stroke + 2 * grow) / 3
    margins = np.maximum(grow, least - outline.hull_to_spine)[:, None]
    shear = np.tan(np.arctan(attributes.slant) - attributes.rotation)
    cosine, sine = np.cos(attributes.rotation), np.sin(attributes.rotation)
    turn = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1.0, -shear], [0.0, 1.0]])
    room = min(_WIDEST, 1.0 - 2 * abs(attributes.x))
    for _ in range(3):  # alternates between ink box and stretch; converges after two iterations
        matrix = turn @ np.diag([stretch, 1.0])
        points = outline.hull @ matrix.T
        moves = margins * (stretch, 1.0)
        low, high = (points - moves).min(0), (points + moves).max(0)
        scale = attributes.size / (high - low)[1]
        stretch *= min(1.0, room / (scale * (high - low)[0]))
    offset = 0.5 + np.array([attributes.x, attributes.y]) - scale * (low + high) / 2
    return _Layout(scale * IMAGE_SIZE * matrix, IMAGE_SIZE * offset, grow, least, attributes.width * stretch / target)


@functools.cache
def _warp_basis(controls: int = 4) -> np.ndarray:
    """Returns the matrix [samples, controls] of cubic interpolation from control points to samples along an axis."""
    samples = np.linspace(0, controls - 1, IMAGE_SIZE * _SUPERSAMPLE)
    rows = [ndimage.map_coordinates(row, samples[None], order=3, mode="nearest") for row in np.eye(controls)]
    return np.stack(rows, axis=1)


def render(attributes: GlyphAttributes) -> np.ndarray:
    """Renders a glyph.

    Args:
        attributes: attributes that determine the image.

    Returns:
        uint8 [32, 32], bright ink (255) on a black background (0).
    """
    rng = np.random.default_rng(attributes.texture_seed)
    outline = _outline(attributes.font, attributes.digit)
    layout = _lay_out(attributes)
    field = np.maximum(outline.distance + layout.grow, layout.least - outline.to_spine)
    field = np.minimum(field, outline.to_gap - _GAP / 2)

    side = IMAGE_SIZE * _SUPERSAMPLE
    centres = (np.arange(side) + 0.5) / _SUPERSAMPLE
    basis = _warp_basis()
    controls = rng.normal(0.0, attributes.warp * IMAGE_SIZE, size=(2, basis.shape[1], basis.shape[1]))
    xy = np.stack(np.meshgrid(centres, centres)) + basis @ controls @ basis.T
    xy = np.linalg.inv(layout.matrix) @ (xy.reshape(2, -1) - layout.offset[:, None]) * outline.ink_height
    rows_columns = xy[::-1] + (np.array(field.shape)[:, None] - 1) / 2
    distance = ndimage.map_coordinates(field, rows_columns, order=1, mode="nearest")
    samples_per_height = np.sqrt(abs(np.linalg.det(layout.matrix))) * _SUPERSAMPLE
    coverage = np.clip(0.5 + distance * samples_per_height, 0.0, 1.0)
    image = coverage.reshape(IMAGE_SIZE, _SUPERSAMPLE, IMAGE_SIZE, _SUPERSAMPLE).mean((1, 3))
    return _add_noise(image, attributes, rng)


def _add_noise(image: np.ndarray, attributes: GlyphAttributes, rng: np.random.Generator) -> np.ndarray:
    """Applies grain (additive, and speckle on the ink) or blur to a float image in [0, 1]; returns uint8."""
    if attributes.noise == "grainy":
        additive, speckle = rng.normal(0.0, attributes.grain, size=(2, *image.shape))
        image = image * (1 + 2 * speckle) + additive
    pixels = (np.clip(image, 0.0, 1.0) * 255).round().astype(np.uint8)
    if attributes.noise == "blurred":
        small = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX)
        pixels = np.asarray(small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    return pixels


def corpus(num: int, seed: int, start: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Renders images `start` to `start + num` of a corpus, with training captions.

    Args:
        num: number of images.
        seed: number of the corpus; images and captions do not depend on the slice.
        start: index of the first image.

    Returns:
        images uint8 [num, 32, 32], captions (num strings), labels int32 [num].
    """
    images = np.empty((num, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    captions, labels = [], np.empty(num, np.int32)
    for row in range(num):
        attributes = sample_attributes(seed, start + row)
        images[row], labels[row] = render(attributes), attributes.digit
        captions.append(glyph_vocabulary.random_caption(attributes, np.random.default_rng([seed, start + row, 1])))
    return images, captions, labels
