"""The glyph domain's captioner: measures an image, and says it in the words with which the generator was trained."""

from collections.abc import Sequence

import numpy as np

from utilgen_jax.pretraining.vocabulary import ATTRIBUTES, BANDS, DIGIT_NAMES, band, position
from utilgen_jax.prompts.captions.glyph_measures import GlyphMeasures, measure


def caption_glyphs(images: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Captions images in the glyph domain's vocabulary; a `Captioner`.

    For example 'bold, upright, wide, large, centred, clean'.

    Args:
        images: uint8 [B, S, S, C], C 1 or 3, any S.
        class_names: B words; 'three', '3' and '3 - three' are a digit's.

    Returns:
        Phrases in the order of the training captions. The style of a font is not among them, as handwriting has none;
        nor is the width of what is no digit, see `glyph_measures`. '' of an empty image.
    """
    captions = []
    for image, class_name in zip(images, class_names, strict=True):
        measures = measure(image, _digit(class_name))
        said = {} if measures is None else glyph_phrases(measures)
        captions.append(", ".join(said[name] for name in ATTRIBUTES if name in said))
    return captions


def glyph_phrases(measures: GlyphMeasures) -> dict[str, str]:
    """The phrase of each of `vocabulary.ATTRIBUTES` that was measured."""
    values = {name: getattr(measures, name) for name in BANDS}
    said = {name: band(name, value) for name, value in values.items() if value is not None}
    return {**said, "position": position(measures.x, measures.y), "noise": measures.noise}


def _digit(class_name: str) -> int | None:
    """The digit that a class is named for; None where it is named for none, or for two."""
    words = set(class_name.lower().replace("_", " ").split())
    digits = [digit for digit, name in enumerate(DIGIT_NAMES) if words & {name, str(digit)}]
    return digits[0] if len(digits) == 1 else None
