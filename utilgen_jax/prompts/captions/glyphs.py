"""The glyph domain's captioner: describes measurements of an image in the vocabulary of the generator."""

from collections.abc import Sequence

import numpy as np

from utilgen_jax.prompts.captions.glyph_measures import GlyphMeasures, measure
from utilgen_jax.prompts.glyph_vocabulary import ATTRIBUTES, BANDS, DIGIT_NAMES, band, position


def caption_glyphs(images: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Captions images in the glyph domain's vocabulary; a `Captioner`.

    For example 'bold, upright, wide, large, centred, clean'.

    Args:
        images: uint8 [B, S, S, C], C 1 or 3, any S.
        class_names: B class names; digits are recognised by names such as 'three', '3' and '3 - three'.

    Returns:
        Attribute values in the order of the training captions, without the font style, which handwriting lacks, and
        without the width of images of other classes, see `glyph_measures`. '' for an empty image.
    """
    captions = []
    for image, class_name in zip(images, class_names, strict=True):
        measures = measure(image, _digit(class_name))
        values = {} if measures is None else attribute_values(measures)
        captions.append(", ".join(values[name] for name in ATTRIBUTES if name in values))
    return captions


def attribute_values(measures: GlyphMeasures) -> dict[str, str]:
    """Returns the value of each of `vocabulary.ATTRIBUTES` that was measured."""
    numbers = {name: getattr(measures, name) for name in BANDS}
    values = {name: band(name, number) for name, number in numbers.items() if number is not None}
    return {**values, "position": position(measures.x, measures.y), "noise": measures.noise}


def _digit(class_name: str) -> int | None:
    """Returns the digit in a class name; None if there is none, or more than one."""
    words = set(class_name.lower().replace("_", " ").split())
    digits = [digit for digit, name in enumerate(DIGIT_NAMES) if words & {name, str(digit)}]
    return digits[0] if len(digits) == 1 else None
