import numpy as np
import pytest

from utilgen_jax.data import npz
from utilgen_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 2, 2])
NAMES = ("a", "b", "c")


def _write(tmp_path, **arrays):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(("images", "labels"), [("x_train", "y_train"), ("train_images", "train_labels")])
def test_both_ways_to_name_the_arrays_are_read(tmp_path, images, labels):
    path = _write(tmp_path, **{images: IMAGES, labels: LABELS[:, None]})
    sources = npz.load(path, image_size=5, channels=1, class_names=NAMES)
    assert sources.test is None
    np.testing.assert_array_equal(sources.train.labels, LABELS)
    assert sources.train.labels.dtype == np.int32
    assert sources.train.ids[4] == "train/00004"
    np.testing.assert_array_equal(sources.train.read([4, 1]), IMAGES[[4, 1]][..., None])


def test_rgb_is_read_and_scaled(tmp_path):
    rgb = np.repeat(RNG.integers(0, 256, (6, 1, 1, 3), dtype=np.uint8), 10, axis=1).repeat(10, axis=2)
    train = npz.load(_write(tmp_path, x_train=rgb, y_train=LABELS), 5, 3, NAMES).train
    np.testing.assert_array_equal(train.read([2]), rgb[[2], ::2, ::2])


def test_test_is_test_else_val(tmp_path):
    train = dict(x_train=IMAGES, y_train=LABELS, x_val=IMAGES[:2], y_val=LABELS[:2])
    assert npz.load(_write(tmp_path, **train), 5, 1, NAMES).test.ids == ("val/00000", "val/00001")
    sources = npz.load(_write(tmp_path, **train, x_test=IMAGES[1:2], y_test=LABELS[1:2]), 5, 1, NAMES)
    assert sources.test.ids == ("test/00000",)


def test_the_file_can_name_its_classes(tmp_path):
    path = _write(tmp_path, x_train=IMAGES, y_train=LABELS, class_names=np.array(NAMES))
    assert npz.load(path, 5, 1).train.class_names == NAMES
    with pytest.raises(InputError, match="set config.data.class_names"):
        npz.load(_write(tmp_path, x_train=IMAGES, y_train=LABELS), 5, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(x_train=IMAGES), "needs x_train and y_train.*has x_train"),
        (dict(x_train=IMAGES / 255, y_train=LABELS), "x_train is float64; images must be uint8"),
        (dict(x_train=IMAGES[:, None], y_train=LABELS), r"x_train has shape \(6, 1, 5, 5\)"),
        (dict(x_train=IMAGES, y_train=LABELS[:5]), r"y_train has shape \(5,\)"),
        (dict(x_train=IMAGES, y_train=np.eye(3, dtype=int)[LABELS]), r"y_train has shape \(6, 3\)"),
        (dict(x_train=IMAGES, y_train=LABELS / 2), "y_train is float64; labels must be integers"),
        (dict(x_train=IMAGES, y_train=LABELS + 1), "has label 3, outside 0..2"),
        (dict(x_train=IMAGES, y_train=LABELS.astype(object)), "cannot be read as a .npz file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        npz.load(_write(tmp_path, **arrays), 5, 1, NAMES)


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(InputError, match="config.data.path='nowhere.npz' is not a file"):
        npz.load("nowhere.npz", 5, 1, NAMES)
    for content in (b"", b"garbage", b"PK\x03\x04 cut off"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(InputError, match="bad.npz is not a .npz file"):
            npz.load(str(tmp_path / "bad.npz"), 5, 1, NAMES)
    np.save(tmp_path / "single.npy", IMAGES)
    with pytest.raises(InputError, match="single.npy is not a .npz file"):
        npz.load(str(tmp_path / "single.npy"), 5, 1, NAMES)


def test_a_damaged_array_is_refused(tmp_path):
    path = _write(tmp_path, x_train=IMAGES, y_train=LABELS)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[content.index(IMAGES.tobytes()) + 10] ^= 255
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(InputError, match="set.npz cannot be read as a .npz file of plain arrays.*CRC"):
        npz.load(path, 5, 1, NAMES)
