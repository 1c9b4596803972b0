import io

import jax
import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data import images
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.sharding import batch_sharding, make_mesh


def _random(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("convert", [np.asarray, jax.numpy.asarray], ids=["numpy", "jax"])
def test_every_byte_survives_the_way_to_float_and_back(convert):
    every = convert(np.arange(256, dtype=np.uint8))
    floats = images.to_float(every)
    assert floats.dtype == np.float32
    assert float(floats.min()) == -1.0 and float(floats.max()) == 1.0
    back = images.to_uint8(floats)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, every)


def test_floats_of_bytes_have_the_same_bits_in_any_program():
    every = np.arange(256, dtype=np.uint8)
    in_a_program = jax.jit(lambda bytes_, other: images.as_floats(bytes_) + other - other)
    np.testing.assert_array_equal(in_a_program(every, np.float32(0)), images.to_float(every))
    np.testing.assert_array_equal(images.as_floats(images.to_float(every)), images.to_float(every))
    np.testing.assert_allclose(images.to_float(every), every / 127.5 - 1, atol=1e-7)


def test_to_uint8_clips():
    np.testing.assert_array_equal(images.to_uint8(np.array([-3.0, 3.0, 0.0], np.float32)), [0, 255, 128])


def test_resize_by_a_whole_factor_is_the_block_mean():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(images.resize(image, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(images.resize(image, 4), image)


@pytest.mark.parametrize("size", [8, 12, 20, 32, 48])
def test_generated_and_real_images_are_scaled_alike(size):
    # Pillow is the oracle: down by whole factors, down by others, and up.
    pixels = _random((3, 32, 32, 3))
    scaled = images.to_uint8(jax.jit(images.resize, static_argnums=1)(images.to_float(pixels), size))
    real = np.stack([images.fit_image(Image.fromarray(image), size, 3) for image in pixels])
    assert np.abs(np.asarray(scaled, int) - real).max() <= 1


def test_generated_images_are_resized_under_jit():
    pixels = _random((2, 32, 32, 3))
    seen = jax.jit(lambda x: images.set_channels(images.resize(x, 8), 1))(images.to_float(pixels))
    assert seen.shape == (2, 8, 8, 1)
    real = np.stack([images.fit_image(Image.fromarray(image), 8, 1) for image in pixels])
    assert np.abs(np.asarray(images.to_uint8(seen), int) - real).max() <= 1


def test_luminance_is_pillows_and_grey_is_repeated():
    rgb = _random((5, 4, 3))
    grey = images.to_uint8(images.set_channels(images.to_float(rgb), 1))[..., 0]
    assert np.abs(np.asarray(grey, int) - np.asarray(Image.fromarray(rgb).convert("L"))).max() <= 1
    single = rgb[..., :1].astype(np.float32)
    np.testing.assert_array_equal(images.set_channels(single, 3), np.repeat(single, 3, axis=-1))
    np.testing.assert_array_equal(images.set_channels(single, 1), single)


def test_shapes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="square"):
        images.resize(np.zeros((1, 4, 6, 3), np.float32), 2)
    with pytest.raises(ValueError, match="channels"):
        images.set_channels(np.zeros((1, 4, 4, 4), np.float32), 3)


def test_fit_keeps_the_middle_square():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = _random((4, 4, 3))
    np.testing.assert_array_equal(images.fit_image(Image.fromarray(wide), 4, 3), wide[:, 3:7])
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(images.fit_image(Image.fromarray(tall), 4, 3), tall[3:7])


def test_fit_scales_16_bit_greys_and_lays_transparency_over_white():
    deep = (np.arange(16, dtype=np.uint16).reshape(4, 4)) * 17 * 257
    np.testing.assert_array_equal(images.fit_image(Image.fromarray(deep), 4, 1)[..., 0], deep // 257)
    glass = np.zeros((4, 4, 4), np.uint8)
    glass[0, 0] = (10, 20, 30, 255)
    fitted = images.fit_image(Image.fromarray(glass), 4, 3)
    np.testing.assert_array_equal(fitted[0, 0], (10, 20, 30))
    assert (fitted[1:] == 255).all()


def test_decode_turns_an_image_upright():
    pixels = _random((4, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", exif=exif)
    np.testing.assert_array_equal(images.fit_image(images.open_image(file, "it"), 4, 3), pixels[::-1, ::-1])


@pytest.mark.parametrize("broken", [b"", b"no image at all", "cut"])
def test_decoding_error_names_the_image(broken):
    if broken == "cut":
        file = io.BytesIO()
        Image.fromarray(_random((32, 32, 3))).save(file, "png")
        broken = file.getvalue()[:500]
    with pytest.raises(InputError, match="daisy/7.png.*cannot be decoded"):
        images.open_image(io.BytesIO(broken), "daisy/7.png")


@pytest.mark.parametrize("size", [4, 8, 10, 16])
def test_stored_images_are_scaled_with_the_same_bits_however_many_they_are(size):
    stored = _random((8, 16, 16, 3))
    for channels in (1, 3):
        whole = images.scaled(stored, size, channels)
        floats = images.set_channels(images.resize(images.to_float(stored), size), channels)
        np.testing.assert_allclose(whole, floats, atol=1e-6)
        with jax.set_mesh(make_mesh()):
            split = images.scaled(jax.device_put(stored, batch_sharding(8)), size, channels)
        for others in (split, np.concatenate([images.scaled(image[None], size, channels) for image in stored])):
            np.testing.assert_array_equal(whole, others)
