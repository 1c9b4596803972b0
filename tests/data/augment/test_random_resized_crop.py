import jax
import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.augment.random_resized_crop import draw_box, random_resized_crop, resize_boxes

IMAGES = np.random.default_rng(0).random((3, 24, 24, 2), dtype=np.float32)
BOXES = np.array([[0, 0, 24, 24], [3, 5, 9, 14], [20, 1, 4, 3]])


@pytest.mark.parametrize("size", [8, 32])
def test_a_box_is_scaled_as_pillow_does(size):
    resized = np.asarray(jax.jit(resize_boxes, static_argnums=2)(IMAGES, BOXES, size))
    for image, (top, left, height, width), ours in zip(IMAGES, BOXES.tolist(), resized, strict=True):
        for channel in range(2):
            channel_image = Image.fromarray(image[..., channel])
            box = (left, top, left + width, top + height)
            expected = np.asarray(channel_image.resize((size, size), Image.Resampling.BILINEAR, box=box))
            np.testing.assert_allclose(ours[..., channel], expected, atol=2e-5)


def test_boxes_are_drawn_as_torchvision_draws_them():
    keys = jax.random.split(jax.random.key(0), 2000)
    top, left, height, width = np.asarray(jax.jit(jax.vmap(lambda key: draw_box(key, 100, (0.2, 0.5))))(keys)).T
    share, aspect = height * width / 100**2, width / height
    assert 0.19 < share.min() < 0.21 and 0.49 < share.max() < 0.51 and share.mean() == pytest.approx(0.35, abs=0.01)
    assert (
        0.73 < aspect.min() < 0.78 and 1.3 < aspect.max() < 1.36 and np.log(aspect).mean() == pytest.approx(0, abs=0.02)
    )
    assert (top >= 0).all() and (top + height <= 100).all() and (left >= 0).all() and (left + width <= 100).all()
    assert top.min() == 0 == left.min() and (top + height).max() == 100 == (left + width).max()


def test_the_whole_image_where_no_draw_fits():
    # A box of the full area fits only if it is square.
    box = jax.jit(lambda key: draw_box(key, 1000, (1.0, 1.0)))(jax.random.key(1))
    assert box.tolist() == [0, 0, 1000, 1000]


def test_each_image_has_its_own_box():
    keys = jax.random.split(jax.random.key(0), 3)
    same = np.repeat(IMAGES[:1], 3, axis=0)
    crop = jax.jit(random_resized_crop, static_argnums=2)
    crops = np.asarray(crop(same, keys, 24))
    assert not np.allclose(crops[0], crops[1]) and not np.allclose(crops[1], crops[2])
    np.testing.assert_array_equal(crop(same, keys[::-1], 24), crops[::-1])
    np.testing.assert_allclose(crop(same, keys, 24, (1.0, 1.0)), same, atol=1e-6)
