"""The controlled vocabulary of the glyph domain: what can be said about an image, and from which measures.

A caption is the class template followed by attribute phrases in a fixed order, any of which may be left out:

    a photo of the digit three, bold, leaning left, narrow, large, centred, clean, sans

Words follow from measures by the thresholds in `BANDS`, never the other way round, so that whoever measures an image
(a captioner of real digits) can speak the language in which the generator was trained.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = ("weight", "slant", "width", "size", "position", "noise", "style")

# The width of each digit over its height, upright, the mean over the fonts used: the unit of the measure `width`.
TYPICAL_ASPECT = (0.65, 0.51, 0.64, 0.62, 0.70, 0.62, 0.64, 0.64, 0.63, 0.64)

# measure -> (word, upper bound) in rising order: the first word whose bound exceeds the measure.
BANDS: dict[str, tuple[tuple[str, float], ...]] = {
    "weight": (("thin", 0.13), ("regular weight", 0.19), ("bold", np.inf)),
    "slant": (("leaning left", -0.12), ("upright", 0.12), ("leaning right", np.inf)),
    "width": (("narrow", 0.85), ("normal width", 1.18), ("wide", np.inf)),
    "size": (("small", 0.60), ("medium size", 0.82), ("large", np.inf)),
}
CENTRED_WITHIN = 0.07  # an ink box whose centre is nearer than this to the image's, on both axes, is centred
POSITIONS = ("centred", "to the left", "to the right", "to the top", "to the bottom")
NOISES = ("clean", "grainy", "blurred")
STYLES = ("sans", "serif", "typewriter", "italic")

PHRASES: dict[str, tuple[str, ...]] = {
    **{name: tuple(word for word, _ in bands) for name, bands in BANDS.items()},
    "position": POSITIONS,
    "noise": NOISES,
    "style": STYLES,
}

TEMPLATE_ONLY = 0.3  # the share of training captions that are the class template alone
KEEP_PHRASE = 0.6  # the probability of each phrase in the other captions
NUMERAL = 0.2  # the share of training captions that write '3' for 'three'


@dataclasses.dataclass(frozen=True)
class GlyphAttributes:
    """All that determines a glyph image; the caption follows from it too.

    Attributes:
        digit: The class, 0 to 9.
        style: One of `STYLES`, that of `font`.
        font: The font's name, a key of `glyphs.FONTS`.
        weight: Stroke width over ink height.
        slant: Tangent of the angle by which upright strokes lean; positive leans right.
        width: Upright ink width over ink height, over the digit's `TYPICAL_ASPECT`.
        size: Ink height over image height.
        x: Horizontal offset of the ink box's centre from the image's, over the image's width; positive is right.
        y: The same vertically; positive is down.
        noise: One of `NOISES`.
        grain: Standard deviation of a grainy image's noise, of 1 for full ink; 0 in others.
        rotation: Clockwise rotation in radians, contained in `slant`.
        warp: Standard deviation of the elastic warp, over the image's width.
        texture_seed: Seeds what has no name: the warp's field and the grain.
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
    """Return the phrase for a value of one of the measures in `bands`: the first whose bound exceeds it."""
    return next(word for word, upper in bands[measure] if value < upper)


def position(x: float, y: float) -> str:
    """Return the phrase for the ink box's offset from the centre, in image widths right and image heights down."""
    if max(abs(x), abs(y)) < CENTRED_WITHIN:
        return "centred"
    if abs(x) >= abs(y):
        return "to the right" if x > 0 else "to the left"
    return "to the bottom" if y > 0 else "to the top"


def phrases(attributes: GlyphAttributes) -> dict[str, str]:
    """Return the phrase of each of `ATTRIBUTES`, in caption order."""
    return {
        **{measure: band(measure, getattr(attributes, measure)) for measure in BANDS},
        "position": position(attributes.x, attributes.y),
        "noise": attributes.noise,
        "style": attributes.style,
    }


def class_prompt(digit: int, numeral: bool = False) -> str:
    """Return the class template: 'a photo of the digit three', or '... 3' with `numeral`."""
    return f"a photo of the digit {digit if numeral else DIGIT_NAMES[digit]}"


def caption(attributes: GlyphAttributes, keep: Collection[str] = ATTRIBUTES, numeral: bool = False) -> str:
    """Describe a glyph in the controlled vocabulary.

    Args:
        attributes: What to describe.
        keep: The names, of `ATTRIBUTES`, that are said; the order is always that of `ATTRIBUTES`.
        numeral: Write the digit as a numeral, not as a word.

    Returns:
        The caption: the class template and one phrase for each name kept, comma separated.
    """
    said = [phrase for name, phrase in phrases(attributes).items() if name in keep]
    return ", ".join([class_prompt(attributes.digit, numeral), *said])


def random_caption(attributes: GlyphAttributes, rng: np.random.Generator) -> str:
    """Return a training caption: a random part of what can be said (see `TEMPLATE_ONLY`, `KEEP_PHRASE`, `NUMERAL`)."""
    numeral = bool(rng.random() < NUMERAL)
    if rng.random() < TEMPLATE_ONLY:
        return class_prompt(attributes.digit, numeral)
    kept = rng.random(len(ATTRIBUTES)) < KEEP_PHRASE
    return caption(attributes, [name for name, is_kept in zip(ATTRIBUTES, kept, strict=True) if is_kept], numeral)


def vocabulary_words() -> tuple[str, ...]:
    """Return every word, numeral and mark that a caption can contain, without repeats, in a fixed order."""
    texts = [class_prompt(digit) for digit in range(10)]
    texts += [phrase for options in PHRASES.values() for phrase in options]
    return tuple(dict.fromkeys([*(word for text in texts for word in text.split()), ",", *map(str, range(10))]))
