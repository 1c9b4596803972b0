"""Layout of contact sheets."""

import numpy as np
import pytest

from utilgen_jax.report.contact_sheet import contact_sheet


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_images_are_enlarged_in_reading_order(channels: tuple[int, ...]):
    images = np.random.default_rng(0).integers(0, 255, (5, 6, 4, *channels), dtype=np.uint8)
    sheet = np.asarray(contact_sheet(images, columns=3, scale=2))
    assert sheet.shape == (4 + 2 * 16, 4 + 3 * 12, 3)
    last = sheet[4 + 16 : 4 + 16 + 12, 4 + 12 : 4 + 12 + 8]
    expected = images[4] if channels == (3,) else np.broadcast_to(images[4].reshape(6, 4, 1), (6, 4, 3))
    np.testing.assert_array_equal(last[::2, ::2], expected)
    np.testing.assert_array_equal(last[1::2, 1::2], expected)
    assert (sheet[20:, 28:] == 255).all()  # the place of the sixth image is empty


def test_titles_and_captions_take_room_and_leave_ink():
    images = np.full((4, 32, 32), 255, np.uint8)
    bare = contact_sheet(images, columns=2)
    titled = contact_sheet(
        images, 2, ["a photo of the digit three"] * 4, row_titles=("one", "two"), column_titles=("left", "right")
    )
    assert titled.width > bare.width and titled.height > bare.height
    assert (np.asarray(bare) == 255).all() and (np.asarray(titled) < 128).any()
