"""Images agree with their attributes, and so with their captions."""

import dataclasses

import numpy as np
import pytest

from utilgen_jax.pretraining import glyphs
from utilgen_jax.prompts import glyph_vocabulary
from utilgen_jax.prompts.glyph_vocabulary import GlyphAttributes

FONT_NAMES = [(style, name) for style, fonts in glyphs.FONTS.items() for name in fonts]


def plain(index: int, **changes: float | str) -> GlyphAttributes:
    """Clean, unwarped attributes, which can be measured to the pixel."""
    changes = {"noise": "clean", "grain": 0.0, "warp": 0.0, **changes}
    return dataclasses.replace(glyphs.sample_attributes(3, index), **changes)


def ink_box(image: np.ndarray) -> tuple[float, float, float, float]:
    """(left, right, top, bottom) in pixels."""
    rows, columns = np.nonzero(image > 127)
    return columns.min(), columns.max() + 1, rows.min(), rows.max() + 1


def lean(image: np.ndarray) -> float:
    """Regression of the column on the height: the slant of an upright shape, up to the shape's own asymmetry."""
    rows, columns = np.indices(image.shape)
    ink = image / image.sum()
    rows, columns = rows - (ink * rows).sum(), columns - (ink * columns).sum()
    return float(-(ink * rows * columns).sum() / (ink * rows**2).sum())


def test_the_seed_and_the_index_determine_everything():
    images, captions, labels = glyphs.corpus(24, seed=5)
    assert images.shape == (24, 32, 32) and images.dtype == np.uint8 and labels.dtype == np.int32
    part, part_captions, part_labels = glyphs.corpus(8, seed=5, start=16)
    np.testing.assert_array_equal(part, images[16:])
    assert part_captions == captions[16:] and part_labels.tolist() == [i % 10 for i in range(16, 24)]
    other, other_captions, _ = glyphs.corpus(24, seed=6)
    assert other_captions != captions and not any((a == b).all() for a, b in zip(images, other, strict=True))


@pytest.mark.parametrize(("style", "name"), FONT_NAMES)
def test_every_font_draws_ten_different_digits(style: str, name: str):
    images = [
        glyphs.render(plain(digit, digit=digit, style=style, font=name, size=0.95, x=0.0, y=0.0, width=1.0))
        for digit in range(10)
    ]
    ink = np.array([(image > 127).mean() for image in images])
    assert ((ink > 0.05) & (ink < 0.6)).all()
    assert len({image.tobytes() for image in images}) == 10


def test_size_and_place_are_those_of_the_ink_box():
    for index in range(60):
        attributes = plain(index)
        left, right, top, bottom = ink_box(glyphs.render(attributes))
        assert bottom - top == pytest.approx(32 * attributes.size, abs=3)
        if attributes.size < 0.95:
            assert (top + bottom) / 2 == pytest.approx(32 * (0.5 + attributes.y), abs=2)
        assert (left + right) / 2 == pytest.approx(32 * (0.5 + attributes.x), abs=2)
        assert left >= 0 and right <= 32 and right - left <= 32


def test_width_is_that_of_the_upright_ink_box():
    for index in range(30):
        attributes = plain(index, slant=0.0, rotation=0.0, size=0.8, width=0.9, x=0.0, y=0.0)
        left, right, top, bottom = ink_box(glyphs.render(attributes))
        aspect = (right - left) / (bottom - top) / glyph_vocabulary.TYPICAL_ASPECT[attributes.digit]
        assert aspect == pytest.approx(0.9, abs=0.2)


def test_weight_slant_and_width_move_the_image_their_way():
    for index in range(30):
        base = {"size": 0.8, "x": 0.0, "y": 0.0, "weight": 0.15, "slant": 0.0, "width": 1.0}
        ink = [glyphs.render(plain(index, **{**base, "weight": weight})).mean() for weight in (0.09, 0.15, 0.23)]
        assert ink[0] < ink[1] < ink[2]
        leans = [lean(glyphs.render(plain(index, **{**base, "slant": slant}))) for slant in (-0.3, 0.0, 0.3)]
        assert leans[1] - leans[0] == pytest.approx(0.3, abs=0.1) and leans[2] - leans[1] == pytest.approx(0.3, abs=0.1)
        boxes = [ink_box(glyphs.render(plain(index, **{**base, "width": width}))) for width in (0.8, 1.0, 1.3)]
        widths = [right - left for left, right, *_ in boxes]
        assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("slant", [-0.3, 0.0, 0.3])
def test_rotation_is_part_of_the_slant(slant: float):
    bar = {"digit": 1, "style": "sans", "font": "stix-sans", "size": 0.8, "x": 0.0, "y": 0.0, "slant": slant}
    leans = [lean(glyphs.render(plain(1, **bar, rotation=angle))) for angle in (-0.15, 0.0, 0.15)]
    np.testing.assert_allclose(leans, leans[1], atol=0.06)


def test_noise_follows_the_attributes():
    clean = glyphs.render(plain(8, size=0.9))
    grainy = glyphs.render(plain(8, size=0.9, noise="grainy", grain=0.1))
    blurred = glyphs.render(plain(8, size=0.9, noise="blurred"))
    cells = [image.reshape(8, 4, 8, 4).mean((1, 3)).ravel() for image in (blurred, clean)]
    assert np.corrcoef(cells)[0, 1] > 0.97
    assert np.abs(np.diff(blurred.astype(float))).max() < 0.6 * np.abs(np.diff(clean.astype(float))).max()
    ground = clean == 0
    # Noise of mean 0, clipped at a background of 0, has the mean sigma / sqrt(2 pi).
    assert grainy[ground].mean() == pytest.approx(0.1 * 255 / np.sqrt(2 * np.pi), rel=0.2)
    assert (clean[ground] == 0).all()


def test_typical_aspects_are_the_fonts_means():
    aspects = [[glyphs._outline(name, digit).aspect for digit in range(10)] for _, name in FONT_NAMES]
    np.testing.assert_allclose(np.mean(aspects, 0), glyph_vocabulary.TYPICAL_ASPECT, atol=0.02)


def test_every_value_occurs_and_most_glyphs_are_large_and_centred():
    sampled = [glyph_vocabulary.attribute_values(glyphs.sample_attributes(0, index)) for index in range(600)]
    for name, options in glyph_vocabulary.ATTRIBUTE_VALUES.items():
        assert {values[name] for values in sampled} == set(options)
    assert np.mean([values["size"] == "large" for values in sampled]) > 0.55
    assert np.mean([values["position"] == "centred" for values in sampled]) > 0.8
    assert not any(values["size"] == "small" and values["noise"] == "blurred" for values in sampled)
