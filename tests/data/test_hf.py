"""Data sets through the library `datasets`: local folders, and a hub that answers or does not."""

import builtins
import io
import tarfile
from types import SimpleNamespace
from unittest import mock

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image

from utilgen_jax.config.command_line import read_config
from utilgen_jax.data import hf
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


ROWS = [{"bytes": png(image), "path": None} for image in IMAGES]
ANT_OR_BEE = datasets.ClassLabel(names=["ant", "bee"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")


def table(image_column="img", rows=ROWS, **columns):
    """A table of images and further columns, each (feature, values)."""
    features = {image_column: datasets.Image()} | {name: feature for name, (feature, _) in columns.items()}
    values = {image_column: rows} | {name: values for name, (_, values) in columns.items()}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def write(folder, train, test=None):
    folder.mkdir(exist_ok=True)
    train.to_parquet(folder / "train-00000-of-00001.parquet")
    if test is not None:
        test.to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def load(folder, columns=("", ""), size=8):
    return hf.load("", str(folder), size, 3, columns)


def check_ants_and_bees(sources):
    assert sources.train.class_names == ("ant", "bee")
    np.testing.assert_array_equal(sources.train.labels, [0, 1] * 3)
    assert sources.train.labels.dtype == np.int32
    np.testing.assert_array_equal(sources.train.read(np.array([5, 0, 2])), IMAGES[[5, 0, 2]])
    assert sources.train.at(16, 1).read([3]).shape == (1, 16, 16, 1)
    assert sources.train.ids[5] == "train/00005" and sources.test.ids == ("test/00000", "test/00001")
    split = few_shot(sources, shots=1, seed=0)
    assert split.real.images.shape == (2, 8, 8, 3) and split.originals(4, 1).shape == (2, 4, 4, 1)


def test_parquet_files_are_read_and_columns_found_by_their_type(tmp_path):
    train = table(kind=(ANT_OR_BEE, [0, 1] * 3), note=(datasets.Value("string"), ["x"] * 6))
    check_ants_and_bees(load(write(tmp_path / "set", train, train.select([0, 1]))))


def test_what_datasets_has_saved_is_read(tmp_path):
    train = table(kind=(ANT_OR_BEE, [0, 1] * 3))
    datasets.DatasetDict(train=train, test=train.select([0, 1])).save_to_disk(tmp_path / "set")
    check_ants_and_bees(load(tmp_path / "set"))


def test_webdataset_shards_are_read_with_numbers_for_names(tmp_path):
    (tmp_path / "set").mkdir()
    for split, number in (("train", 6), ("test", 2)):
        with tarfile.open(tmp_path / "set" / f"{split}-0000.tar", "w") as shard:
            for place in range(number):
                for ending, content in (("png", png(IMAGES[place])), ("cls", str(place % 2).encode())):
                    entry = tarfile.TarInfo(f"{place:04d}.{ending}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    sources = load(tmp_path / "set")
    assert sources.train.class_names == ("0", "1") and sources.test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(sources.train.read(np.arange(6)), IMAGES)


def test_a_config_names_its_own_columns_and_classes(tmp_path):
    train = table(coarse=(ANT_OR_BEE, [0] * 6), fine=(ANT_OR_BEE, [0, 1] * 3))
    folder = write(tmp_path / "set", train)
    with pytest.raises(InputError, match="several label columns, coarse, fine; name one by config.data.label_column"):
        load(folder)
    with pytest.raises(InputError, match="label_column='kind': .* no such column; possible: coarse, fine"):
        load(folder, ("", "kind"))
    settings = {"source": "hf", "path": folder, "label_column": "fine", "image_column": "img", "image_size": "8"}
    settings |= {"class_names": "black ant,honey bee", "channels": "3"}
    config = read_config("digits", [(f"data.{name}", value) for name, value in settings.items()])
    sources = load_source(config.data)
    assert sources.train.class_names == ("black ant", "honey bee") and sources.test is None
    assert sources.train.labels.tolist() == [0, 1] * 3


def test_usual_names_go_first_and_words_are_labels_too(tmp_path):
    train = table(coarse_label=(ANT_OR_BEE, [0] * 6), fine_label=(ANT_OR_BEE, [0, 1] * 3))
    assert load(write(tmp_path / "one", train)).train.labels.tolist() == [0, 1] * 3
    words = (datasets.Value("string"), ["wasp", "ant"] * 3)
    test = table(rows=ROWS[:2], label=(datasets.Value("string"), ["ant", "fly"]))
    with pytest.raises(InputError, match="test: has classes that train lacks: fly"):
        load(write(tmp_path / "two", table(label=words), test))
    assert load(write(tmp_path / "three", table(label=words))).train.class_names == ("ant", "wasp")


def test_a_test_split_without_labels_is_none(tmp_path):
    train, secret = table(label=(ANT_OR_BEE, [0, 1] * 3)), table(rows=ROWS[:2], label=(ANT_OR_BEE, [-1, -1]))
    folder = write(tmp_path / "set", train, secret)
    assert load(folder).test is None
    train.select([2, 3]).to_parquet(tmp_path / "set" / "validation-00000-of-00001.parquet")
    assert load(folder).test.ids == ("validation/00000", "validation/00001")


def test_what_cannot_be_used_is_told(tmp_path):
    rows = [*ROWS[:4], {"bytes": b"broken", "path": None}, ROWS[5]]
    train = load(write(tmp_path / "broken", table(rows=rows, label=(ANT_OR_BEE, [0, 1] * 3)))).train
    with pytest.raises(InputError, match="train/00004: the image cannot be decoded"):
        train.read([4])
    with pytest.raises(InputError, match="has no label column; name one by config.data.label_column"):
        load(write(tmp_path / "unlabelled", table(weight=(datasets.Value("float32"), [0.5] * 6))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: cannot be read as Parquet, Arrow or WebDataset files"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="should be a folder"):
        load(tmp_path / "nowhere")


def test_files_outside_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(IMAGES[0]))
    paths = [str(tmp_path / "secret.png"), "../secret.png", "inside.png", None, "../secret.png", "../secret.png"]
    rows = [{"bytes": None, "path": path} for path in paths]
    folder = tmp_path / "set"
    source = hf.HfSource("set", ("a", "b"), np.zeros(6, np.int32), tuple("abcdef"), rows, folder, 8, 3)
    folder.mkdir()
    (folder / "inside.png").write_bytes(png(IMAGES[1]))
    np.testing.assert_array_equal(source.read([2]), IMAGES[1:2])
    for row in (0, 1):
        with pytest.raises(InputError, match=r"secret\.png lies outside of"):
            source.read([row])
    with pytest.raises(InputError, match="there is no image"):
        source.read([3])


class FakeHub:
    """A hub that has, or has not, the repository 'owner/name', a folder of Parquet files."""

    def __init__(self, monkeypatch, folder, error=None):
        self.loaded, load_dataset = [], datasets.load_dataset

        def info(repository, *, revision, timeout):
            assert timeout < 5
            if error:
                raise error
            return SimpleNamespace(siblings=[])

        def load(name, *arguments, revision=None):
            self.loaded.append((name, *arguments, revision))
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                raise ConnectionError("not in the cache")
            return load_dataset(folder)

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "dataset_info", info)
        monkeypatch.setattr(datasets, "load_dataset", load)


def test_a_repository_is_read_at_a_configuration_and_a_revision(tmp_path, monkeypatch):
    train = table(kind=(ANT_OR_BEE, [0, 1] * 3))
    fake = FakeHub(monkeypatch, write(tmp_path / "set", train, train.select([0, 1])))
    check_ants_and_bees(hf.load("owner/name", "", 8, 3))
    hf.load("owner/name:plain@v1.0", "", 8, 3)
    assert fake.loaded == [("owner/name", None, None), ("owner/name", "plain", "v1.0")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "cannot be reached; `hf download owner/name --repo-type dataset"),
        (GatedRepoError("403", response=mock.MagicMock()), "licence at https://huggingface.co/datasets/owner/name"),
        (RepositoryNotFoundError("404", response=mock.MagicMock()), "neither a local folder nor a dataset on the hub"),
    ],
)
def test_a_hub_that_does_not_give_it_is_told_with_the_way_out(error, message, tmp_path, monkeypatch):
    FakeHub(monkeypatch, "", error)
    with pytest.raises(InputError, match=message):
        hf.load("owner/name", "", 8, 3)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["../set", "owner/name/more", "", "owner name"])
def test_a_name_is_a_repositorys(name):
    with pytest.raises(InputError, match="is no data set of the hub"):
        hf.load(name, "", 8, 3)


def test_without_the_library_the_way_to_it_is_told(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'utilgen_jax\[hf\]'"):
        hf.load("owner/name", "", 8, 3)
