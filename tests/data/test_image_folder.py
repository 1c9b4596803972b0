import os

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data import image_folder
from utilgen_jax.data.formats import image_suffixes
from utilgen_jax.data.splits import few_shot
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


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_validation_folder_replaces_a_missing_test_split(folder, name):
    (folder / "test").rename(folder / name)
    assert image_folder.load(str(folder), 6, 3).test.ids[0] == f"{name}/daisy/y.png"
    (folder / name).rename(folder / "unused")
    assert image_folder.load(str(folder), 6, 3).test is None


def test_what_is_not_used_is_told_in_one_line(folder, capsys):
    image_folder.load(str(folder), 6, 3)
    told = "files of no format that is read: 1 (train/rose/notes.txt)"
    assert capsys.readouterr().err == f"warning: {folder}: not used: {told}\n"
    for name in ("train/rose/1.heic", "train/rose/2.HEIC", "train/daisy/3.heic", "train/labels.csv"):
        (folder / name).write_bytes(b"")
    (folder / "train/daisy/raw").mkdir()
    (folder / "valid/rose").mkdir(parents=True)
    image_folder.load(str(folder), 6, 3)
    assert capsys.readouterr().err == (
        f"warning: {folder}: not used: files beside the class folders: 1 (train/labels.csv); folders in folders of "
        "images: 1 (train/daisy/raw); files of no format that is read: 4 (.heic 3, .txt 1); folders beside train/: 1 "
        "(valid)\n"
    )


def test_an_ordinary_folder_is_read_without_a_word(folder, capsys):
    (folder / "train/rose/notes.txt").unlink()
    (folder / "train/rose/Thumbs.db").write_bytes(b"")
    image_folder.load(str(folder), 6, 3).train.read(range(5))
    assert capsys.readouterr().err == ""


# Apple's icons have sizes of their own, and Pillow will give up IM.
WRITTEN = {end for end, name in Image.registered_extensions().items() if name in {*Image.SAVE} - {"ICNS", "IM"}}


@pytest.mark.parametrize("suffix", sorted({*image_suffixes()} & WRITTEN))
def test_every_format_that_pillow_writes_is_read_as_pillow_reads_it(tmp_path, suffix):
    mode = {"MSP": "1", "XBM": "1", "PFM": "F", "BLP": "P"}.get(Image.registered_extensions()[suffix], "RGB")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"train/{name}/1{suffix.upper()}")
    train = image_folder.load(str(tmp_path), 32, 3).train
    with Image.open(tmp_path / train.ids[0]) as image:
        opened = np.asarray(image.convert("RGB"))
    assert opened.std() > 40
    np.testing.assert_array_equal(train.read([0])[0], opened)


def test_all_broken_images_are_told_at_once(folder):
    for name in ("train/rose/b.png", "train/daisy/1.webp", "test/rose/z.png"):
        (folder / name).write_bytes(b"broken")
    with pytest.raises(InputError) as caught:
        few_shot(image_folder.load(str(folder), 6, 3), shots=0, seed=0)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(folder / name) for name in ("train/daisy/1.webp", "train/rose/b.png", "test/rose/z.png")
    ]


def test_of_many_broken_images_the_first_ones_are_named_and_the_others_counted(folder):
    for number in range(40):
        (folder / f"train/rose/x{number:02d}.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        image_folder.load(str(folder), 6, 3).train.read(range(45))
    *named, last = str(caught.value).splitlines()
    assert len(named) == 10 and last == f"{folder}: and 30 more of the 45 images read"


def test_names_that_are_no_utf_8_are_refused(folder):
    os.mkdir(os.fsencode(folder / "train") + b"/caf\xe9")
    with pytest.raises(InputError, match=r"train: the name 'caf\\+udce9' is not UTF-8; rename it"):
        image_folder.load(str(folder), 6, 3)


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    def listdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match="train cannot be read: Permission denied"):
        image_folder.load(str(folder), 6, 3)


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
