import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits

from utilgen_jax.data import digits
from utilgen_jax.data.image_source import ArraySource, Sources
from utilgen_jax.data.sources import load_source
from utilgen_jax.errors import InputError


def _config(**changes):
    fields = dict(source="digits", name="digits", path="", image_size=8, channels=1)
    return ConfigDict(fields | dict(class_names=(), classes_file="", max_classes=0, exclude="") | changes)


def _source(labels, class_names, name="made"):
    labels = np.array(labels, np.int32)
    pixels = np.zeros((len(labels), 4, 4, 1), np.uint8)
    return ArraySource(name, class_names, labels, tuple(str(n) for n in range(len(labels))), pixels, 4, 1)


def test_digits_are_scikit_learns_with_their_full_range():
    sources = load_source(_config())
    assert sources.test is None
    train = sources.train
    assert len(train.labels) == len(train.ids) == 1797
    assert train.labels.dtype == np.int32
    assert train.class_names[0] == "zero" and train.class_names[9] == "nine"
    assert train.ids[123] == "digits/0123" and len(set(train.ids)) == 1797
    images = train.read([5, 0])
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    expected = load_digits()
    np.testing.assert_allclose(images[1, ..., 0] * (16 / 255), expected.images[0], atol=0.04)
    assert train.read(np.arange(1797)).max() == 255
    np.testing.assert_array_equal(train.labels, expected.target)


def test_digits_have_the_requested_size_and_channels():
    images = digits.load(image_size=16, channels=3).train.read([7])
    assert images.shape == (1, 16, 16, 3)
    assert (images == images[..., :1]).all()
    assert digits.load(image_size=16, channels=3).train.read([]).shape == (0, 16, 16, 3)


def test_class_names_can_be_given_in_other_words():
    names = tuple(f"the figure {n}" for n in range(10))
    assert load_source(_config(class_names=names)).train.class_names == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("one", "two"), "has 2 entries .*needs 10 .*'two' has no entry"),
        (("same",) * 10, r"has 10 entries \(1 distinct\).*needs 10"),
        (tuple(f"word|other {n}" for n in range(11)), "has 11 entries .*needs 10 .*'word.other 10' has no class"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(InputError, match=f"class_names {message}"):
        load_source(_config(class_names=names))


def test_classes_with_several_words_keep_their_names():
    names = tuple(f"figure {n}|numeral {n}" if n else "nought" for n in range(10))
    train = load_source(_config(class_names=names, max_classes=3)).train
    assert train.class_names == ("zero", "one", "two")


@pytest.mark.parametrize(("own", "expected"), [(("n01", "n02"), ("n01", "n02")), (None, ("tench", "goldfish or carp"))])
def test_of_a_file_without_names_several_words_are_the_name(tmp_path, own, expected):
    arrays = {"x_train": np.zeros((4, 4, 4), np.uint8), "y_train": np.arange(4) % 2}
    np.savez(tmp_path / "set.npz", **arrays, **({"class_names": np.array(own)} if own else {}))
    data = _config(source="npz", path=str(tmp_path / "set.npz"), class_names=("tench", "goldfish|carp"))
    assert load_source(data).train.class_names == expected


def test_class_names_are_given_to_train_and_test(tmp_path):
    for split in ("train", "test"):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / name / "a.png")
    data = _config(source="imagefolder", path=str(tmp_path), image_size=4, class_names=("tench", "goldfish"))
    sources = load_source(data)
    assert sources.train.class_names == sources.test.class_names == ("tench", "goldfish")
    assert sources.train.ids == ("train/n01/a.png", "train/n02/a.png")


def test_unknown_source_is_refused():
    with pytest.raises(InputError, match="'webcam'.*digits, tfds, hf, imagefolder, npz"):
        load_source(_config(source="webcam"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (_source([], ("a", "b")), None, "no images"),
        (_source([0, 0], ("a",)), None, "two classes"),
        (_source([0, 1, 0], ("a", "b", "c")), None, "no training images of c"),
        (_source([0, 1, 2], ("a", "b")), None, "2 has label 2, outside 0..1"),
        (_source([0, 1], ("a", "b")), _source([0, -1], ("a", "b")), "1 has label -1"),
        (_source([0, 1], ("a", "b")), _source([0, 1], ("b", "a")), "different classes"),
    ],
)
def test_inconsistent_sources_are_refused(train, test, message):
    with pytest.raises(InputError, match=message):
        Sources(train, test)
