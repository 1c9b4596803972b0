"""Each format opens in the tool that it is for, and the lines of its data card train on it."""

import io
import re

import datasets
import numpy as np
import pytest
import tensorflow_datasets
import webdataset
from PIL import Image

from utilgen_jax.config.schema import Config
from utilgen_jax.generate.card import CardSource, data_card, licence_of
from utilgen_jax.generate.formats import FORMATS
from utilgen_jax.generate.formats.base import Example, make_format
from utilgen_jax.generate.plan import Part
from utilgen_jax.generate.png import to_png
from utilgen_jax.methods import METHODS, SECTIONS
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import read_pool

# webdataset leaves its tar files to the garbage collector.
leaves_files_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLASS_NAMES = ("wren", "Blue tit")
FOLDERS = ("wren", "blue_tit")
PARTS = [Part(0, 2, 0, 4), Part(1, 2, 4, 6)]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
RECORDS = [
    PoolRecord(
        file_name=f"{FOLDERS[place % 2]}/{place:05d}.png",
        label=place % 2,
        class_name=CLASS_NAMES[place % 2],
        prompt=f"a photo of a {CLASS_NAMES[place % 2]} ☃",
        seed=2**31 - 1 - place,
        difficulty=0.25,
        weight=0.5 + place / 16,
        soft_label=(0.25, 0.75),
        round=0,
        conditioned_on=("first.jpg", "second.jpg") if place % 2 else None,
    )
    for place in range(6)
]


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    """(name of the format, its folder): six images in two parts, and the card."""
    written_format = make_format(request.param, tmp_path, CLASS_NAMES)
    for part in PARTS:
        examples = [
            Example(place, to_png(IMAGES[place], RECORDS[place], "sd15"), RECORDS[place])
            for place in range(part.start, part.stop)
        ]
        assert not written_format.file(part).exists()
        written_format.write(part, examples)
        assert written_format.file(part).is_file()
    for _ in range(2):  # as after a command that was cut off in the middle of it
        written_format.close(PARTS, "six images")
    assert all(written_format.file(part).is_file() for part in PARTS)
    card = CardSource(
        config=Config(method_sections={name: kind() for name, kind in SECTIONS.items()}),
        method=METHODS["joint"],
        checkpoint=tmp_path,
        class_names=CLASS_NAMES,
        records=RECORDS,
        command=["python"],
        seed=3,
        opening=written_format.opening,
        reading=written_format.reading,
    )
    (tmp_path / "README.md").write_text(data_card(card), encoding="utf-8")
    return request.param, tmp_path


def read(written):
    """Images and columns, by the tool of each format."""
    name, folder = written
    if name == "tfds":
        rows = [*tensorflow_datasets.builder_from_directory(folder).as_data_source("train")]
        for row in rows:
            row["prompt"] = row["prompt"].decode()
            row["conditioned_on"] = [name.decode() for name in row["conditioned_on"]]
        return [row["image"] for row in rows], rows
    options = {"data_files": str(folder / "train-*.tar")} if name == "webdataset" else {"data_dir": str(folder)}
    data = datasets.load_dataset(name, split="train", cache_dir=str(folder / ".cache"), **options)
    if name == "webdataset":
        return data["png"], [row["json"] | {"label": row["cls"]} for row in data]
    return data["image"], [*data]


def test_its_tool_opens_it(written):
    images, rows = read(written)
    assert len(rows) == 6
    for place, (image, row) in enumerate(zip(images, rows, strict=True)):
        np.testing.assert_array_equal(np.asarray(image), IMAGES[place])
        record = RECORDS[place]
        assert (row["label"], row["prompt"], row["seed"]) == (record.label, record.prompt, record.seed)
        assert tuple(row.get("conditioned_on") or ()) == (record.conditioned_on or ())
        assert row["weight"] == record.weight and tuple(row["soft_label"]) == record.soft_label


@pytest.mark.parametrize("written", ["imagefolder"], indirect=True)
def test_a_folder_of_images_holds_a_folder_for_each_class_and_reads_as_a_pool(written):
    """As torchvision's `ImageFolder` finds images: files below each folder, of the class of that name."""
    folder = written[1]
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    assert found == [".parts", *sorted(FOLDERS)]  # `.parts` goes when the set is closed
    assert len([*(folder / "wren").glob("*.png")]) == 3
    np.testing.assert_array_equal(read_pool(folder, CLASS_NAMES).images, IMAGES)


@leaves_files_open
@pytest.mark.parametrize("written", ["webdataset"], indirect=True)
def test_webdataset_opens_tar_files(written):
    files = sorted(map(str, written[1].glob("train-*.tar")))
    assert [file[-18:] for file in files] == ["00000-of-00002.tar", "00001-of-00002.tar"]
    samples = [*webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")]
    np.testing.assert_array_equal([sample["png"] for sample in samples], IMAGES)
    assert [sample["cls"] for sample in samples] == [0, 1] * 3
    assert samples[5]["json"]["prompt"] == RECORDS[5].prompt


@pytest.mark.parametrize("written", ["parquet", "tfds"], indirect=True)
def test_classes_have_their_names(written):
    name, folder = written
    if name == "parquet":
        label = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / ".cache")).features["label"]
    else:
        label = tensorflow_datasets.builder_from_directory(folder).info.features["label"]
    assert tuple(label.names) == CLASS_NAMES


@leaves_files_open
def test_the_lines_of_the_card_train_on_it(written, monkeypatch):
    name, folder = written
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / ".cache")
    reading, torch_lines, jax_lines = re.findall(
        r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S
    )
    found = {}
    exec(reading, found)
    np.testing.assert_array_equal(found["images"], IMAGES)
    np.testing.assert_allclose(found["targets"], [[0.25, 0.75]] * 6)
    np.testing.assert_allclose(found["weights"], [record.weight for record in RECORDS])
    by_torch, by_jax = dict(found), dict(found)
    exec(torch_lines, by_torch)
    exec(jax_lines, by_jax)
    # The targets favour the second class, whatever the image: so do both models after a few steps.
    bias = by_torch["model"][1].bias.detach().numpy()
    assert bias[1] != bias[0] and np.isfinite(bias).all()
    assert by_jax["params"]["bias"][1] > by_jax["params"]["bias"][0]
    assert max(len(torch_lines.strip().splitlines()), len(jax_lines.strip().splitlines())) <= 15


def test_a_png_says_that_it_is_synthetic():
    image = Image.open(io.BytesIO(to_png(IMAGES[1], RECORDS[1], "sd15")))
    np.testing.assert_array_equal(np.asarray(image), IMAGES[1])
    assert image.text["Source"] == "synthetic" and image.text["checkpoint"] == "sd15"
    assert (image.text["class"], image.text["prompt"]) == ("Blue tit", "a photo of a Blue tit ☃")
    assert image.text["seed"] == str(RECORDS[1].seed)


def test_the_licence_is_the_checkpoints_own_or_that_of_a_published_one(tmp_path):
    assert licence_of("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path) == "CreativeML Open RAIL-M"
    assert "not known" in licence_of("somebody/model", tmp_path)
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nlicense: none\n")
    assert licence_of("sd15", tmp_path) == "mit"


def test_what_is_not_known_of_an_image_is_left_open(tmp_path):
    record = PoolRecord(label=0, class_name="wren", prompt="p", seed=1)
    example = Example(0, to_png(IMAGES[0], record, "sd15"), record)
    for name in ("parquet", "tfds"):
        (tmp_path / name).mkdir()
        written_format = make_format(name, tmp_path / name, CLASS_NAMES)
        written_format.write(Part(0, 1, 0, 1), [example])
        written_format.close([Part(0, 1, 0, 1)], "one image")
    (row,) = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert row["soft_label"] is None and row["weight"] is None and row["requested_difficulty"] is None
    (row,) = tensorflow_datasets.builder_from_directory(tmp_path / "tfds").as_data_source("train")
    assert np.isnan(row["weight"]) and np.isnan(row["soft_label"]).all() and row["word"] == b""
    assert len(row["conditioned_on"]) == 0


def test_a_format_names_the_library_that_it_lacks(tmp_path, monkeypatch):
    import sys

    from utilgen_jax.errors import InputError

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'utilgen_jax\[hf\]'"):
        make_format("parquet", tmp_path, CLASS_NAMES)
