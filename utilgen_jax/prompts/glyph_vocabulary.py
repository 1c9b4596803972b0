"""The controlled vocabulary of the glyph domain: attributes of an image, and the measures that determine them.

A caption is the class template followed by attribute values in a fixed order, any of which may be left out:

    a photo of the digit three, bold, leaning left, narrow, large, centred, clean, sans

Values follow from measures by the thresholds in `BANDS`. A captioner that measures real digits thus uses the
vocabulary of the generator's training captions.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

IMAGE_SIZE = 32  # pixels a side of the glyph generator's images
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = ("weight", "slant", "width", "size", "position", "noise", "style")

# The aspect ratio (width over height) of each upright digit, averaged over the fonts: the unit of the measure `width`.
TYPICAL_ASPECT = (0.65, 0.51, 0.64, 0.62, 0.70, 0.62, 0.64, 0.64, 0.63, 0.64)

# measure -> (value, upper bound) in ascending order; the first bound above the measure counts.
BANDS: dict[str, tuple[tuple[str, float], ...]] = {
    "weight": (("thin", 0.13), ("regular weight", 0.19), ("bold", np.inf)),
    "slant": (("leaning left", -0.12), ("upright", 0.12), ("leaning right", np.inf)),
    "width": (("narrow", 0.85), ("normal width", 1.18), ("wide", np.inf)),
    "size": (("small", 0.60), ("medium size", 0.82), ("large", np.inf)),
}
CENTRED_WITHIN = 0.07  # largest offset of a centred ink box, on each axis
POSITIONS = ("centred", "to the left", "to the right", "to the top", "to the bottom")
NOISES = ("clean", "grainy", "blurred")
STYLES = ("sans", "serif", "typewriter", "italic")

ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
    **{name: tuple(value for value, _ in bands) for name, bands in BANDS.items()},
    "position": POSITIONS,
    "noise": NOISES,
    "style": STYLES,
}

TEMPLATE_ONLY = 0.3  # fraction of training captions without attributes
KEEP_ATTRIBUTE = 0.6  # probability of each attribute in the other training captions
NUMERAL = 0.2  # fraction of training captions that write '3' for 'three'


@dataclasses.dataclass(frozen=True)
class GlyphAttributes:
    """Attributes that determine a glyph image and its caption.

    Attributes:
        digit: the class, 0 to 9.
        style: style of `font`, one of `STYLES`.
        font: the font's name, a key of `glyphs.FONTS`.
        weight: stroke width over ink height.
        slant: tangent of the angle by which upright strokes lean; positive leans right.
        width: upright ink width over ink height, over the digit's `TYPICAL_ASPECT`.
        size: ink height over image height.
        x: horizontal offset of the ink box's centre from the image's, over the image's width; positive is right.
        y: vertical offset over the image's height; positive is down.
        noise: one of `NOISES`.
        grain: standard deviation of a grainy image's noise, where full ink is 1; else 0.
        rotation: clockwise rotation in radians, contained in `slant`.
        warp: standard deviation of the elastic warp, over the image's width.
        texture_seed: seed of the warp field and the grain.
    """

    digit: int
    style: str
    font: str
    weight: float
    slant: float
    width: float
    size: float
    x: float
    y: float
    noise: str
    grain: float
    rotation: float
    warp: float
    texture_seed: int


def band(measure: str, value: float, bands: Mapping[str, tuple[tuple[str, float], ...]] = BANDS) -> str:
    """Returns the attribute value for a measure in `bands`: the first whose bound exceeds it."""
    return next(word for word, upper in bands[measure] if value < upper)


def position(x: float, y: float) -> str:
    """Returns the attribute value for the ink box's offset, in image widths to the right and image heights down."""
    if max(abs(x), abs(y)) < CENTRED_WITHIN:
        return "centred"
    if abs(x) >= abs(y):
        return "to the right" if x > 0 else "to the left"
    return "to the bottom" if y > 0 else "to the top"


def attribute_values(attributes: GlyphAttributes) -> dict[str, str]:
    """Returns the value of each of `ATTRIBUTES`, in caption order."""
    return {
        **{measure: band(measure, getattr(attributes, measure)) for measure in BANDS},
        "position": position(attributes.x, attributes.y),
        "noise": attributes.noise,
        "style": attributes.style,
    }


def class_prompt(digit: int, numeral: bool = False) -> str:
    """Returns the class template: 'a photo of the digit three', or '... 3' with `numeral`."""
    return f"a photo of the digit {digit if numeral else DIGIT_NAMES[digit]}"


def caption(attributes: GlyphAttributes, keep: Collection[str] = ATTRIBUTES, numeral: bool = False) -> str:
    """Describes a glyph in the controlled vocabulary.

    Args:
        attributes: attributes of the glyph.
        keep: names of the attributes to include; their order is that of `ATTRIBUTES`.
        numeral: whether to write the digit as a numeral.

    Returns:
        The class template and the values of the included attributes, comma separated.
    """
    values = [value for name, value in attribute_values(attributes).items() if name in keep]
    return ", ".join([class_prompt(attributes.digit, numeral), *values])


def random_caption(attributes: GlyphAttributes, rng: np.random.Generator) -> str:
    """Returns a training caption with random attributes (see `TEMPLATE_ONLY`, `KEEP_ATTRIBUTE`, `NUMERAL`)."""
    numeral = bool(rng.random() < NUMERAL)
    if rng.random() < TEMPLATE_ONLY:
        return class_prompt(attributes.digit, numeral)
    kept = rng.random(len(ATTRIBUTES)) < KEEP_ATTRIBUTE
    return caption(attributes, [name for name, is_kept in zip(ATTRIBUTES, kept, strict=True) if is_kept], numeral)


def vocabulary_words() -> tuple[str, ...]:
    """Returns the distinct words, numerals and marks of all captions, in a fixed order."""
    texts = [class_prompt(digit) for digit in range(10)]
    texts += [value for values in ATTRIBUTE_VALUES.values() for value in values]
    return tuple(dict.fromkeys([*(word for text in texts for word in text.split()), ",", *map(str, range(10))]))
