import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.images import to_float, to_uint8
from utilgen_jax.errors import InputError
from utilgen_jax.pool.records import PoolRecord, class_folders
from utilgen_jax.pool.storage import PoolWriter, read_pool, update_records

NAMES = ("sea lion", "cat")
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 6, 3), dtype=np.uint8)
PIXELS[2] = PIXELS[2, ..., :1]  # One grey image.
LABELS = [0, 1, 1, 0, 0, 1, 0]


def _records(start, stop):
    return [PoolRecord(label=LABELS[n], prompt=f"prompt {n}", seed=n) for n in range(start, stop)]


def _append(writer, start, stop):
    writer.append(to_float(PIXELS[start:stop]), _records(start, stop))


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """A whole pool of 7 images, written in two pieces."""
    writer = PoolWriter(tmp_path / "pool", NAMES)
    _append(writer, 0, 4)
    _append(writer, 4, 7)
    return tmp_path / "pool"


def _edit_line(folder, number, **changes):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    (folder / "metadata.jsonl").write_text("".join(line + "\n" for line in lines))


def test_what_was_written_is_read(folder):
    read = read_pool(folder, NAMES)
    np.testing.assert_array_equal(read.images, PIXELS)
    np.testing.assert_array_equal(read.labels, LABELS)
    assert read.labels.dtype == np.int32
    assert read.records[5] == PoolRecord(
        file_name="cat/00005.png", label=1, class_name="cat", prompt="prompt 5", seed=5
    )
    assert read.records[3].file_name == "sea_lion/00003.png"


def test_metadata_has_every_field_on_every_line_and_null_for_the_unknown(folder):
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    expected = "file_name label class_name prompt seed difficulty requested_difficulty weight soft_label round".split()
    assert all(list(line) == expected for line in lines)
    assert lines[0]["weight"] is None


def test_a_word_stands_only_where_the_class_has_several(tmp_path):
    writer = PoolWriter(tmp_path, NAMES)
    records = [
        dataclasses.replace(record, word=word) for record, word in zip(_records(0, 2), ("seal", None), strict=True)
    ]
    writer.append(to_float(PIXELS[:2]), records)
    first, second = (json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines())
    assert first["word"] == "seal" and "word" not in second
    # Folders are named by the class.
    assert [record.file_name for record in read_pool(tmp_path).records] == ["sea_lion/00000.png", "cat/00001.png"]
    assert [record.word for record in read_pool(tmp_path).records] == ["seal", None]
    update_records(tmp_path, weight=np.array([0.5, 1.0]))
    assert [record.word for record in read_pool(tmp_path).records] == ["seal", None]
    _edit_line(tmp_path, 0, word=3)
    with pytest.raises(InputError, match="line 1: word is 3"):
        read_pool(tmp_path)


def test_the_images_that_one_was_made_from_stand_only_where_there_are_some(tmp_path):
    first, second = _records(0, 2)
    sources = ("train/1.png", "train/2.png")
    PoolWriter(tmp_path, NAMES).append(
        to_float(PIXELS[:2]), [dataclasses.replace(first, conditioned_on=sources), second]
    )
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert lines[0]["conditioned_on"] == list(sources) and "conditioned_on" not in lines[1]
    assert [record.conditioned_on for record in read_pool(tmp_path).records] == [sources, None]


def test_grey_images_are_stored_as_grey(folder):
    modes = {}
    for record in read_pool(folder).records:
        with Image.open(folder / record.file_name) as image:
            modes[record.file_name] = image.mode
    assert modes.pop("cat/00002.png") == "L"
    assert set(modes.values()) == {"RGB"}


def test_an_interrupted_pool_is_continued_to_the_same_files(folder, tmp_path):
    again = tmp_path / "again"
    _append(PoolWriter(again, NAMES), 0, 4)
    # What a process killed in its second append leaves: images without a line, a temporary file, half a line.
    (again / "cat/00005.png").write_bytes(b"half an image")
    (again / "sea_lion/.00006.png.partial").write_bytes(b"")
    with open(again / "metadata.jsonl", "ab") as metadata:
        metadata.write((folder / "metadata.jsonl").read_bytes().splitlines()[4][:30])
    assert len(read_pool(again).records) == 4
    writer = PoolWriter(again, NAMES)
    assert len(writer) == 4
    assert not (again / "cat/00005.png").exists()
    _append(writer, len(writer), 7)
    assert len(writer) == 7
    assert _files(again) == _files(folder)


def test_half_a_first_line_is_an_empty_pool(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_na')
    assert len(PoolWriter(tmp_path, NAMES)) == 0
    assert (tmp_path / "metadata.jsonl").read_bytes() == b""


def test_a_persons_own_files_are_left_alone(folder):
    (folder / "cat/my notes.txt").write_text("keep")
    (folder / "cat/favourite.png").write_bytes(b"keep")
    PoolWriter(folder, NAMES)
    assert (folder / "cat/my notes.txt").exists() and (folder / "cat/favourite.png").exists()


def test_floats_are_rounded_and_clipped(tmp_path):
    images = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype(np.float32)
    PoolWriter(tmp_path, NAMES).append(images, [PoolRecord(label=0)])
    np.testing.assert_array_equal(read_pool(tmp_path).images, to_uint8(images))


def test_class_folders_differ_whatever_the_names():
    assert class_folders(("A b", "../etc", "++", "Straße")) == ("a_b", "etc", "class", "straße")
    assert class_folders(("a b", "A-b", "a b 0")) == ("a_b_0", "a_b_1", "a_b_0_2")


def test_update_replaces_columns_and_nothing_else(folder):
    before = read_pool(folder)
    weights = np.linspace(0, 1, 7, dtype=np.float32)
    soft = np.full((7, 2), 0.5)
    update_records(folder, weight=weights, soft_label=soft, round=[0] * 7)
    after = read_pool(folder, NAMES)
    np.testing.assert_array_equal(np.array([record.weight for record in after.records], np.float32), weights)
    assert after.records[0].soft_label == (0.5, 0.5) and after.records[0].round == 0
    assert [record.prompt for record in after.records] == [record.prompt for record in before.records]
    np.testing.assert_array_equal(after.images, before.images)
    assert not list(folder.rglob(".*.partial"))
    assert len(PoolWriter(folder, NAMES)) == 7


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(weight=[1.0]), "1 values for 7"),
        (dict(quality=[1.0] * 7), "'quality' is not a field"),
        (dict(file_name=["x"] * 7), "'file_name' is not a field"),
        (dict(weight=[float("nan")] * 7), "JSON"),
    ],
)
def test_an_update_that_does_not_fit_changes_nothing(folder, columns, message):
    before = _files(folder)
    with pytest.raises(ValueError, match=message):
        update_records(folder, **columns)
    assert _files(folder) == before


def test_an_update_cut_off_leaves_the_old_records(folder, monkeypatch):
    before = (folder / "metadata.jsonl").read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        update_records(folder, weight=[0.5] * 7)
    assert (folder / "metadata.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(label=2), "line 2: label 2 is out of range"),
        (dict(label=-1), "line 2: label -1 is out of range"),
        (dict(label="1"), "line 2: label '1' is out of range"),
        (dict(label=0), "another pool"),
        (dict(class_name=None), "class_name None"),
        (dict(file_name="cat/00099.png"), "cat/00099.png is missing"),
        (dict(file_name="sea_lion/00000.png"), "stands there twice"),
        (dict(file_name="../outside.png"), "leaves the pool's folder"),
        (dict(file_name="/etc/hostname"), "leaves the pool's folder"),
        (dict(weight="high"), "weight is 'high'"),
        (dict(colour="red"), "with the fields"),
    ],
)
def test_damaged_records_are_refused_by_reader_and_writer(folder, changes, message):
    Image.fromarray(PIXELS[0]).save(folder.parent / "outside.png")
    _edit_line(folder, 1, **changes)
    for use in (read_pool, PoolWriter):
        with pytest.raises(InputError, match=message):
            use(folder, NAMES)


def test_lines_that_are_no_json_are_refused(folder):
    with open(folder / "metadata.jsonl", "a") as metadata:
        metadata.write("no json\n")
    with pytest.raises(InputError, match="line 8 is not JSON"):
        read_pool(folder)


def test_damaged_images_are_named(folder):
    (folder / "cat/00005.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="cat/00005.png.*cannot be decoded"):
        read_pool(folder)
    Image.fromarray(PIXELS[0, :4]).save(folder / "cat/00005.png")
    with pytest.raises(InputError, match="cat/00005.png is"):
        read_pool(folder)
    (folder / "cat/00005.png").unlink()
    with pytest.raises(InputError, match="cat/00005.png is missing"):
        PoolWriter(folder, NAMES)


def test_no_pool_and_an_empty_pool_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="is no pool"):
        read_pool(tmp_path)
    PoolWriter(tmp_path, NAMES)
    with pytest.raises(InputError, match="is empty"):
        read_pool(tmp_path)


def test_a_pool_of_other_classes_is_not_continued(folder):
    with pytest.raises(InputError, match="another pool"):
        PoolWriter(folder, ("dog", "cat"))


@pytest.mark.parametrize(
    ("images", "record", "message"),
    [
        (np.zeros((2, 4, 4, 3)), PoolRecord(label=0), "one for each record"),
        (np.zeros((1, 4, 4, 1)), PoolRecord(label=0), "should be"),
        (np.full((1, 4, 4, 3), np.nan), PoolRecord(label=0), "NaN"),
        (np.zeros((1, 4, 4, 3)), PoolRecord(label=2), "outside 0..1"),
        (np.zeros((1, 4, 4, 3)), PoolRecord(label=0, weight=float("inf")), "JSON"),
    ],
)
def test_an_append_that_does_not_fit_writes_nothing(folder, images, record, message):
    before = _files(folder)
    with pytest.raises(ValueError, match=message):
        PoolWriter(folder, NAMES).append(images, [record])
    assert _files(folder) == before
