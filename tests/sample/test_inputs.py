"""Files that images start from, against diffusers' VaeImageProcessor and numpy's own format."""

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from utilgen_jax.errors import InputError
from utilgen_jax.sample.inputs import image_size, read_latents, scale_image


@pytest.mark.parametrize("asked", [(None, None), (24, None), (None, 40), (16, 16)])
@pytest.mark.parametrize("own", [(23, 37), (64, 32), (9, 8)])
def test_a_image_to_start_from_is_scaled_as_in_diffusers(own, asked):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*own, 3), np.uint8))
    height, width = image_size(image, *asked, multiple=8)
    expected = VaeImageProcessor(vae_scale_factor=8).preprocess(image, *asked)
    ours = scale_image(image, height, width)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected[0].permute(1, 2, 0), atol=1e-6)


def test_a_image_smaller_than_one_latent_is_enlarged_to_one():
    assert image_size(Image.new("RGB", (3, 9)), None, None, multiple=8) == (8, 8)


def test_latents_are_read_as_they_are(tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", latents)
    np.testing.assert_array_equal(read_latents(tmp_path / "x.npy", "x"), latents)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_of_latents_is_named(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"^--latents: cannot be read as an array that np\.save wrote"):
        read_latents(tmp_path / "x.npy", "--latents")


def test_several_arrays_are_not_latents(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="this holds several arrays"):
        read_latents(tmp_path / "x.npz", "x")
