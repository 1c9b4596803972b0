"""Attribute values follow from measures, and captions use the controlled glyph_vocabulary."""

import dataclasses

import numpy as np
import pytest

from utilgen_jax.prompts import glyph_vocabulary as vocabulary

GLYPH = vocabulary.GlyphAttributes(
    digit=3,
    style="sans",
    font="dejavu-sans",
    weight=0.22,
    slant=-0.3,
    width=0.7,
    size=0.95,
    x=0.01,
    y=-0.02,
    noise="clean",
    grain=0.0,
    rotation=0.0,
    warp=0.0,
    texture_seed=1,
)


def test_full_caption_has_all_attributes_in_order():
    assert vocabulary.caption(GLYPH) == (
        "a photo of the digit three, bold, leaning left, narrow, large, centred, clean, sans"
    )


def test_caption_has_the_requested_attributes_in_fixed_order():
    assert vocabulary.caption(GLYPH, ["style", "slant"]) == "a photo of the digit three, leaning left, sans"
    assert vocabulary.caption(GLYPH, [], numeral=True) == "a photo of the digit 3" == vocabulary.class_prompt(3, True)


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        (0.0, 0.0, "centred"),
        (0.06, -0.06, "centred"),
        (-0.2, 0.1, "to the left"),
        (0.2, 0.1, "to the right"),
        (0.1, -0.2, "to the top"),
        (0.1, 0.2, "to the bottom"),
    ],
)
def test_position_names_the_larger_offset(x: float, y: float, value: str):
    assert vocabulary.position(x, y) == value


@pytest.mark.parametrize("measure", sorted(vocabulary.BANDS))
def test_bands_cover_the_line_in_order(measure: str):
    values = np.linspace(-3, 3, 2001)
    words = [vocabulary.band(measure, value) for value in values]
    assert list(dict.fromkeys(words)) == list(vocabulary.ATTRIBUTE_VALUES[measure])
    changes = [values[i] for i in range(1, len(words)) if words[i] != words[i - 1]]
    np.testing.assert_allclose(changes, [upper for _, upper in vocabulary.BANDS[measure][:-1]], atol=0.003)


def test_random_captions_have_the_documented_frequencies():
    rng = np.random.default_rng(0)
    captions = [vocabulary.random_caption(GLYPH, rng) for _ in range(4000)]
    plain = np.mean(["," not in caption for caption in captions])
    expected = vocabulary.TEMPLATE_ONLY + (1 - vocabulary.TEMPLATE_ONLY) * (1 - vocabulary.KEEP_ATTRIBUTE) ** 7
    assert plain == pytest.approx(expected, abs=0.03)
    assert np.mean(["digit 3" in caption for caption in captions]) == pytest.approx(vocabulary.NUMERAL, abs=0.03)
    for value in vocabulary.attribute_values(GLYPH).values():
        frequency = np.mean([value in caption.split(", ") for caption in captions])
        assert frequency == pytest.approx((1 - vocabulary.TEMPLATE_ONLY) * vocabulary.KEEP_ATTRIBUTE, abs=0.03)


def test_vocabulary_words_are_those_of_all_captions():
    words = set(vocabulary.vocabulary_words())
    assert len(words) == len(vocabulary.vocabulary_words())
    for digit in range(10):
        caption = vocabulary.caption(dataclasses.replace(GLYPH, digit=digit), numeral=digit % 2 == 1)
        assert set(caption.replace(",", " , ").split()) <= words
