"""Augmentations against their definitions in NumPy."""

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.augment.augmentation import AUGMENTATIONS, flip_crop
from utilgen_jax.data.augment.randaugment import MAX_MAGNITUDE, OPERATIONS, randaugment

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def operate(name, amount, pixels=PIXELS, fill=128):
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), amount, fill))


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_amount_zero_changes_nothing(name):
    np.testing.assert_array_equal(operate(name, 0.0), PIXELS)


@pytest.mark.parametrize(("amount", "pixels", "fill"), [(1.0, 5, 128), (-0.6, -3, 128), (1.0, 5, 0)])
def test_translation_shifts_and_fills_with_grey(amount, pixels, fill):
    expected = np.full_like(PIXELS, fill)
    if pixels > 0:
        expected[:, :-pixels] = PIXELS[:, pixels:]
    else:
        expected[:, -pixels:] = PIXELS[:, :pixels]
    np.testing.assert_array_equal(operate("translate_x", amount, fill=fill), expected)
    transposed = np.ascontiguousarray(PIXELS.transpose(1, 0, 2))
    found = operate("translate_y", amount, transposed, fill)
    np.testing.assert_array_equal(found, expected.transpose(1, 0, 2))


def test_shear_moves_each_row_by_its_height():
    rows, columns = np.mgrid[:12, :10]
    sources = np.floor(columns + 0.5 + 0.3 * (rows + 0.5)).astype(int)  # the nearest pixel, at the pixels' middles
    expected = np.where((sources < 10)[..., None], PIXELS[rows, sources.clip(max=9)], 128)
    np.testing.assert_array_equal(operate("shear_x", 1.0), expected)


def test_changes_of_value():
    np.testing.assert_array_equal(operate("solarize", 0.5), np.where(PIXELS < 128, PIXELS, 255 - PIXELS))
    np.testing.assert_array_equal(operate("solarize", -1.0), 255 - PIXELS)
    np.testing.assert_array_equal(operate("posterize", 1.0), PIXELS & 0xF0)
    np.testing.assert_allclose(operate("brightness", 0.5), (1.45 * PIXELS.astype(float)).clip(0, 255), atol=1)
    grey = np.asarray(Image.fromarray(PIXELS).convert("L")).astype(float)
    expected = grey[..., None] + 0.1 * (PIXELS - grey[..., None])
    np.testing.assert_allclose(operate("color", -1.0), expected, atol=1)
    contrast = round(grey.mean()) + 1.9 * (PIXELS.astype(float) - round(grey.mean()))
    np.testing.assert_allclose(operate("contrast", 1.0), contrast.clip(0, 255), atol=1)


def test_rotation_by_thirty_degrees_keeps_the_middle():
    image = np.zeros((21, 21, 3), np.uint8)
    image[10] = 255  # a horizontal bar
    rotated = operate("rotate", 1.0, image)
    for radius in (2, 5, 8):  # counter-clockwise: the bar's right end goes up, the rows count downwards
        row, column = 10 - radius * np.sin(np.pi / 6), 10 + radius * np.cos(np.pi / 6)
        assert rotated[round(row), round(column)].min() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_draws_operations_by_the_seed(channels):
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    augmented = randaugment(images, np.random.default_rng(0))
    assert augmented.shape == images.shape and augmented.dtype == np.uint8
    np.testing.assert_array_equal(augmented, randaugment(images, np.random.default_rng(0)))
    assert (augmented != randaugment(images, np.random.default_rng(1))).any()
    np.testing.assert_array_equal(randaugment(images, np.random.default_rng(0), num_operations=0), images)


def test_randaugment_applies_every_operation_and_both_signs(monkeypatch):
    seen = []
    for name in OPERATIONS:
        operation = lambda image, amount, fill, name=name: seen.append((name, amount, fill)) or image
        monkeypatch.setitem(OPERATIONS, name, operation)
    randaugment(np.zeros((300, 2, 2, 3), np.uint8), np.random.default_rng(0), num_operations=2, magnitude=9, fill=7)
    assert len(seen) == 600
    assert set(seen) == {(name, sign * 9 / MAX_MAGNITUDE, 7) for name in OPERATIONS for sign in (-1, 1)}


def test_flip_crop_shows_a_window_of_the_image_or_its_mirror():
    images = np.random.default_rng(2).integers(1, 256, (64, 5, 5, 1), dtype=np.uint8)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = []
    for image, whole in zip(flip_crop(images, np.random.default_rng(0), margin=2), padded, strict=True):
        (place,) = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(whole[top : top + 5, left : left + 5][:, :: -1 if mirrored else 1], image)
        ]
        found.append(place)
    tops, lefts, mirrored = zip(*found, strict=True)
    assert set(tops) == set(lefts) == set(range(5)) and 16 <= sum(mirrored) <= 48


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_keep_the_shape(name):
    images = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    augmented = AUGMENTATIONS[name](images, np.random.default_rng(0))
    assert augmented.shape == images.shape and augmented.dtype == np.uint8
    assert np.array_equal(augmented, images) == (name == "none")
