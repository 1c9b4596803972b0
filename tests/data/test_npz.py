import numpy as np
import pytest

from utilgen_jax.data import npz
from utilgen_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 2, 2])
NAMES = ("a", "b", "c")
TRAIN = dict(x_train=IMAGES, y_train=LABELS)
RGB = np.repeat(IMAGES[..., None], 3, axis=-1)


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
    train = dict(x_train=IMAGES, y_train=LABELS, x_val=IMAGES[:5], y_val=LABELS[:5])
    assert npz.load(_write(tmp_path, **train), 5, 1, NAMES).test.ids[:2] == ("val/00000", "val/00001")
    sources = npz.load(_write(tmp_path, **train, x_test=IMAGES[1:6], y_test=LABELS[1:6]), 5, 1, NAMES)
    assert sources.test.ids == tuple(f"test/0000{number}" for number in range(5))


def test_the_file_can_name_its_classes(tmp_path):
    path = _write(tmp_path, x_train=IMAGES, y_train=LABELS, class_names=np.array(NAMES))
    assert npz.load(path, 5, 1).train.class_names == NAMES
    with pytest.raises(InputError, match="set config.data.class_names"):
        npz.load(_write(tmp_path, x_train=IMAGES, y_train=LABELS), 5, 1)


def test_class_names_may_be_bytes(tmp_path):
    path = _write(tmp_path, **TRAIN, class_names=np.array([b"a", "ä".encode(), b"c"]))
    assert npz.load(path, 5, 1).train.class_names == ("a", "ä", "c")


def test_classes_without_test_images_are_told(tmp_path, capsys):
    path = _write(tmp_path, **TRAIN, x_test=IMAGES[:4], y_test=LABELS[:4])
    npz.load(path, 5, 1, NAMES)
    assert capsys.readouterr().err == f"warning: {path}: x_test has no images of 1 of 3 classes (c)\n"


def test_arrays_that_are_not_used_are_told_in_one_line(tmp_path, capsys):
    unused = dict(x_val=IMAGES, y_val=LABELS, weights=LABELS)
    path = _write(tmp_path, **TRAIN, x_test=IMAGES, y_test=LABELS, **unused)
    npz.load(path, 5, 1, NAMES)
    assert capsys.readouterr().err == f"warning: {path}: not used: 3 arrays (weights, x_val, y_val)\n"
    npz.load(_write(tmp_path, **TRAIN, class_names=np.array(NAMES)), 5, 1)
    assert capsys.readouterr().err == ""


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
        (dict(x_train=np.uint8(7), y_train=LABELS), r"x_train has shape \(\)"),
        (dict(x_train=IMAGES[:, :0], y_train=LABELS), r"x_train has shape \(6, 0, 5, 1\)"),
        (dict(x_train=IMAGES, y_train=LABELS + 2**40), "y_train holds 1099511627778; labels are numbers of classes"),
        (dict(**TRAIN, x_test=IMAGES), "has x_test but no y_test; add it, or remove x_test"),
        (dict(**TRAIN, val_labels=LABELS), "has val_labels but no val_images; add it"),
        (dict(**TRAIN, train_images=IMAGES, train_labels=LABELS), "has x_train and train_images; remove one"),
        (dict(**TRAIN, x_test=RGB, y_test=LABELS), "x_test has 3 channels and x_train has 1; make them the same"),
        (dict(**TRAIN, class_names=np.arange(3)), r"class_names is int64 \(3,\); it should be an array of K strings"),
        (dict(**TRAIN, class_names=np.array(["a", "a", "b"])), "class_names holds an empty name, or one twice: a, a"),
        (dict(**TRAIN, class_names=np.array([b"\xff", b"b", b"c"])), "class_names is not UTF-8"),
        (dict(**TRAIN, class_names=np.array(["a", "b"])), "has label 2, outside 0..1"),
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
