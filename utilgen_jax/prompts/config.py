"""The config section `prompts`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting

# The words that the embedded glyph generator was trained with, those of `prompts.glyph_vocabulary`.
GLYPH_ATTRIBUTES = (
    "thin|regular weight|bold",
    "leaning left|upright|leaning right",
    "narrow|normal width|wide",
    "small|medium size|large",
    "centred|to the left|to the right|to the top|to the bottom",
    "clean|grainy|blurred",
    "sans|serif|typewriter|italic",
)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The section `prompts`: what the generator is told in words."""

    template: str = setting("a photo of the digit {class}", "{class} becomes the class name")
    attributes: tuple[str, ...] = setting(
        GLYPH_ATTRIBUTES,
        "attributes drawn for each prompt of `joint`; the values of each: 'thin|bold'",
    )
    attribute_probability: float = setting(0.15, "that a group is mentioned, at first", minimum=0.0, maximum=1.0)
    choose_words: bool = setting(
        False, "of several words of a class, use those whose images classifiers of the shots take for the class"
    )
    images_per_word: int = setting(20, "images of each word from which words are chosen", minimum=1)
    captions: str = setting(
        "glyphs", "'glyphs', 'tones', 'blip2', a captioner's hub id or folder, or a *.jsonl file", is_path=True
    )
