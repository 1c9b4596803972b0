"""Tones of images made to have them."""

import numpy as np
import pytest

from utilgen_jax.config.presets import TONES
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.captions import make_captioner
from utilgen_jax.prompts.captions.tones import BANDS, caption_tones

RAMP = np.linspace(0, 1, 32)
STRIPES = np.tile([0.0, 1.0], 16)


def caption(grey, channels=1):
    image = np.round(255 * np.broadcast_to(grey, (32, 32))).astype(np.uint8)
    return caption_tones(np.repeat(image[None, ..., None], channels, axis=-1), ["anything"])[0].split(", ")


@pytest.mark.parametrize(
    ("grey", "expected"),
    [
        (0.1, ["dark", "low contrast", "soft", "evenly lit"]),
        (0.9, ["bright", "low contrast", "soft", "evenly lit"]),
        (RAMP, ["medium brightness", "high contrast", "soft", "brighter on the right"]),
        (RAMP[::-1], ["medium brightness", "high contrast", "soft", "brighter on the left"]),
        (STRIPES, ["medium brightness", "high contrast", "much detail", "evenly lit"]),
    ],
)
def test_captions_have_the_tones(grey, expected):
    assert caption(grey) == caption(grey, channels=3) == expected


def test_each_image_has_its_own_caption_at_any_size():
    images = np.stack([np.full((28, 28, 1), level, np.uint8) for level in (0, 255)])
    first, second = caption_tones(images, ["a", "b"])
    assert first.startswith("dark") and second.startswith("bright")
    assert make_captioner("tones") is caption_tones


def test_tones_are_attributes_of_the_config():
    assert tuple("|".join(value for value, _ in bands) for bands in BANDS.values()) == TONES
    groups = PromptAttributes.parse(TONES).groups
    assert len({value for group in groups for value in group}) == sum(map(len, BANDS.values()))
