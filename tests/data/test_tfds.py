"""Reading small data sets in tensorflow-datasets' ArrayRecord layout, without TensorFlow."""

import builtins
import importlib.util
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from utilgen_jax.data import tfds
from utilgen_jax.data.splits import few_shot
from utilgen_jax.errors import InputError

NAMES = ["ant", "bee"]


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _write(data_dir, splits, file_format="array_record", label_name="label"):
    """splits: name -> list of (encoded image, label); the data set is made_up, version 1.0.0."""
    folder = data_dir / "made_up" / "1.0.0"
    folder.mkdir(parents=True)
    features = tensorflow_datasets.features
    features.FeaturesDict(
        {
            "image": features.Image(shape=(None, None, 3)),
            "mask": features.Image(shape=(None, None, 1)),
            label_name: features.ClassLabel(names=NAMES),
        }
    ).save_config(folder)
    infos = []
    for split, rows in splits.items():
        writer = ArrayRecordWriter(str(folder / f"made_up-{split}.array_record-00000-of-00001"), "group_size:1")
        for image, label in rows:
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["mask"].bytes_list.value.append(b"never decoded")
            example.features.feature[label_name].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "filepathTemplate": template, "numBytes": "1", "shardLengths": [str(len(rows))]})
    info = {"name": "made_up", "version": "1.0.0", "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(data_dir)


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
TRAIN = [(_png(image), row % 2) for row, image in enumerate(IMAGES)]


def test_a_prepared_set_is_read(tmp_path):
    data_dir = _write(tmp_path, {"train": TRAIN, "test": TRAIN[:2]})
    sources = tfds.load("made_up", data_dir, image_size=8, channels=3)
    assert sources.train.class_names == ("ant", "bee")
    np.testing.assert_array_equal(sources.train.labels, [0, 1] * 3)
    assert sources.train.labels.dtype == np.int32
    np.testing.assert_array_equal(sources.train.read(np.array([5, 0, 2])), IMAGES[[5, 0, 2]])
    assert sources.train.ids[5] == "train/00005"
    assert sources.test.ids == ("test/00000", "test/00001")
    assert tfds.load("made_up:1.0.0", data_dir, 4, 1).train.read([1]).shape == (1, 4, 4, 1)
    split = few_shot(sources, shots=1, seed=0)
    assert split.real.images.shape == (2, 8, 8, 3) and len(split.test) == 2


def test_records_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_RECORDS_AT_ONCE", 4)
    train = tfds.load("made_up", _write(tmp_path, {"train": TRAIN}), 8, 3).train
    np.testing.assert_array_equal(train.labels, [0, 1] * 3)
    np.testing.assert_array_equal(train.read(np.arange(6)[::-1]), IMAGES[::-1])
    assert train.read([]).shape == (0, 8, 8, 3)


def test_validation_replaces_an_unlabelled_test_split(tmp_path):
    unlabelled = [(TRAIN[0][0], -1)]
    data_dir = _write(tmp_path, {"train": TRAIN, "test": unlabelled, "validation": TRAIN[2:5]})
    assert tfds.load("made_up", data_dir, 8, 3).test.ids[0] == "validation/00000"


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    sources = tfds.load("made_up", _write(tmp_path, {"train": [*TRAIN, (b"broken", 1)]}), 8, 3)
    with pytest.raises(InputError, match="made_up: train/00006.*cannot be decoded"):
        sources.train.read([0, 6])


def test_message_on_a_missing_data_set_has_the_command_to_prepare_it(tmp_path):
    for name in ("no_such_set", "mnist", "made_up:9.9.9", "cifar10:9.9.9"):  # Unknown; known, but not prepared.
        with pytest.raises(InputError) as caught:
            tfds.load(name, str(tmp_path), 8, 3)
        assert "pip install 'utilgen_jax[tfds]'" in str(caught.value)
        command = f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()"
        assert command in str(caught.value)


@pytest.fixture
def unprepared(tmp_path, monkeypatch):
    """The keyword arguments with which builders of the unprepared set are made; `.error` is raised in preparing it."""
    real_builder, real_find, made = tensorflow_datasets.builder, importlib.util.find_spec, SimpleNamespace(calls=[])
    made.error = None

    class Builder:
        info = SimpleNamespace(splits={})

        def download_and_prepare(self):
            if made.error:
                raise made.error
            built = real_builder("made_up", data_dir=_write(tmp_path, {"train": TRAIN}))
            self.info, self.as_data_source = built.info, built.as_data_source

    def builder(name, **options):
        made.calls.append(options)
        return Builder()

    monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    found = lambda name: "found" if name == "tensorflow" else real_find(name)
    monkeypatch.setattr(tfds.importlib.util, "find_spec", found)
    return made


def test_where_tensorflow_is_a_set_is_prepared_on_first_use(unprepared, tmp_path, capsys):
    sources = tfds.load("made_up", str(tmp_path), 8, 3)
    np.testing.assert_array_equal(sources.train.read(np.arange(6)), IMAGES)
    assert unprepared.calls[-1] == {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert f"preparing 'made_up' in data_dir='{tmp_path}'" in capsys.readouterr().err


def test_what_hinders_the_preparation_is_told(unprepared, tmp_path, monkeypatch):
    unprepared.error = AssertionError("Manual directory\n  /x does not exist")
    with pytest.raises(InputError, match="'made_up' cannot be prepared in .*: Manual directory /x does not exist"):
        tfds.load("made_up", str(tmp_path), 8, 3)
    monkeypatch.setattr(tfds.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="is not prepared in .*; to prepare it: "):
        tfds.load("made_up", str(tmp_path), 8, 3)


def test_message_on_another_format_has_the_command_to_prepare_it(tmp_path):
    with pytest.raises(InputError, match="not prepared as ArrayRecord.*file_format='array_record'"):
        tfds.load("made_up", _write(tmp_path, {"train": TRAIN}, file_format="tfrecord"), 8, 3)


def test_a_set_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="no 'image' with one class 'label'.*species"):
        tfds.load("made_up", _write(tmp_path, {"train": TRAIN}, label_name="species"), 8, 3)


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_damaged_files_are_refused(tmp_path, damage):
    data_dir = _write(tmp_path, {"train": TRAIN})
    file = tmp_path / "made_up" / "1.0.0" / "made_up-train.array_record-00000-of-00001"
    file.unlink() if damage == "missing" else file.write_bytes(b"garbage" * 100)
    with pytest.raises(InputError, match="made_up.*train cannot be read"):
        tfds.load("made_up", data_dir, 8, 3)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"name": 3}'])
def test_broken_json_is_told(tmp_path, file, content):
    data_dir = _write(tmp_path, {"train": TRAIN})
    (tmp_path / "made_up" / "1.0.0" / file).write_bytes(content)
    with pytest.raises(InputError, match="made_up"):
        tfds.load("made_up", data_dir, 8, 3)


@pytest.mark.parametrize("name", ["huggingface:mnist", "../made_up", "", "a b", "made_up/x=1,y=2"])
def test_names_that_could_run_code_from_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="config.data.name"):
        tfds.load(name, str(tmp_path), 8, 3)


def test_message_on_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_tfds(name, *args, **kwargs):
        if name == "tensorflow_datasets":
            raise ModuleNotFoundError("No module named 'tensorflow_datasets'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tfds)
    with pytest.raises(InputError, match=r"tensorflow_datasets.*pip install 'utilgen_jax\[tfds\]'"):
        tfds.load("made_up", str(tmp_path), 8, 3)
