import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data import image_folder
from utilgen_jax.errors import InputError


def _save(path, shape=(6, 6, 3), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes, train and test, with several image formats."""
    _save(tmp_path / "train/rose/b.png")
    _save(tmp_path / "train/rose/a.JPG", (20, 30, 3))
    _save(tmp_path / "train/daisy/1.webp", (9, 7, 3))
    _save(tmp_path / "train/daisy/2.bmp", (8, 8))
    _save(tmp_path / "train/daisy/3.jpeg", (64, 16))
    _save(tmp_path / "test/rose/z.png")
    _save(tmp_path / "test/daisy/y.png")
    (tmp_path / "train/rose/notes.txt").write_text("not an image")
    (tmp_path / "train/rose/.hidden.png").write_bytes(b"nor this")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def test_classes_and_images_are_sorted_and_others_passed_over(folder):
    sources = image_folder.load(str(folder), image_size=6, channels=3)
    train = sources.train
    assert train.class_names == sources.test.class_names == ("daisy", "rose")
    assert train.ids == (
        "train/daisy/1.webp",
        "train/daisy/2.bmp",
        "train/daisy/3.jpeg",
        "train/rose/a.JPG",
        "train/rose/b.png",
    )
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1])
    assert train.labels.dtype == np.int32
    assert sources.test.ids == ("test/daisy/y.png", "test/rose/z.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_rgb_of_any_size_come_out_alike(folder, channels):
    train = image_folder.load(str(folder), image_size=6, channels=channels).train
    images = train.read([4, 0, 1, 2, 3])
    assert images.shape == (5, 6, 6, channels) and images.dtype == np.uint8
    if channels == 3:
        np.testing.assert_array_equal(images[0], _save(folder / "again.png"))
        assert (images[2] == images[2][..., :1]).all()


def test_val_replaces_a_missing_test_split(folder):
    (folder / "test").rename(folder / "val")
    assert image_folder.load(str(folder), 6, 3).test.ids[0] == "val/daisy/y.png"
    (folder / "val").rename(folder / "unused")
    assert image_folder.load(str(folder), 6, 3).test is None


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(folder):
    (folder / "train/rose/b.png").write_bytes(b"broken")
    train = image_folder.load(str(folder), 6, 3).train
    train.read([0, 1])
    with pytest.raises(InputError, match="train/rose/b.png.*cannot be decoded"):
        train.read([0, 4])


def test_an_image_removed_meanwhile_is_named(folder):
    train = image_folder.load(str(folder), 6, 3).train
    (folder / "train/rose/b.png").unlink()
    with pytest.raises(InputError, match="train/rose/b.png"):
        train.read([4])


def test_a_folder_without_the_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.data.path='nowhere'"):
        image_folder.load("nowhere", 6, 3)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no class folder"):
        image_folder.load(str(tmp_path), 6, 3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_refused(folder, split):
    (folder / split / "empty").mkdir()
    with pytest.raises(InputError, match=f"{split}/empty has no images"):
        image_folder.load(str(folder), 6, 3)


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_classes_that_differ_are_named(folder, split, other):
    _save(folder / split / "tulip/a.png")
    with pytest.raises(InputError, match=f"{split}/ has classes that {other}/ lacks: tulip"):
        image_folder.load(str(folder), 6, 3)


@pytest.mark.parametrize("place", ["train/rose/link.png", "train/link", "val"])
def test_links_that_leave_the_folder_are_refused(folder, tmp_path_factory, place):
    (folder / "test").rename(folder / "val" if place != "val" else folder / "unused")
    outside = tmp_path_factory.mktemp("outside")
    _save(outside / "rose/a.png")
    target = {"train/rose/link.png": outside / "rose/a.png", "train/link": outside / "rose", "val": outside}[place]
    (folder / place).symlink_to(target)
    with pytest.raises(InputError, match="is a link out of"):
        image_folder.load(str(folder), 6, 3)


def test_links_inside_the_folder_are_followed(folder):
    (folder / "train/rose/c.png").symlink_to(folder / "train/rose/b.png")
    train = image_folder.load(str(folder), 6, 3).train
    images = train.read([4, 5])
    np.testing.assert_array_equal(images[0], images[1])
