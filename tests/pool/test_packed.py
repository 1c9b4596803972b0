"""A pool whose images are packed: read like any other, and whole after any cut."""

import io
import os

import numpy as np
import pytest
import webdataset
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from tests.pool.test_storage import LABELS, NAMES, PIXELS, _append, _files, _records
from utilgen_jax.data.images import to_float
from utilgen_jax.data.streamed_images import Reading, StreamedImages
from utilgen_jax.errors import InputError
from utilgen_jax.pool import config, files, storage
from utilgen_jax.pool.packed import PACKED_FORMATS
from utilgen_jax.pool.records import read_records
from utilgen_jax.pool.storage import PoolWriter, read_pool, update_records

SUFFIXES = {name: each.suffix for name, each in PACKED_FORMATS.items()}


@pytest.fixture(autouse=True)
def three_in_a_file(monkeypatch):
    for module in (files, storage):
        monkeypatch.setattr(module, "IMAGES_IN_FILE", 3)


@pytest.fixture(params=PACKED_FORMATS)
def packed(request, tmp_path):
    """A name of a format, and a whole pool of 7 images, written in two pieces."""
    return request.param, write(tmp_path / "pool", request.param)


def write(folder, image_format, start=0):
    writer = PoolWriter(folder, NAMES, image_format=image_format)
    assert len(writer) >= start
    for piece in range(len(writer), 7, 2):
        _append(writer, piece, min(piece + 2, 7))
    writer.finish()
    return folder


def test_it_reads_like_any_other(packed):
    name, folder = packed
    names = [f"train-0000{n}.{SUFFIXES[name]}" for n in range(3)]
    assert sorted(_files(folder)) == ["metadata.jsonl", *names]
    read, streamed = read_pool(folder, NAMES), read_pool(folder, NAMES, Reading(memory=0))
    np.testing.assert_array_equal(read.images, PIXELS)
    assert isinstance(streamed.images, StreamedImages)
    np.testing.assert_array_equal(streamed.images.source.read([6, 2, 4]), PIXELS[[6, 2, 4]])
    np.testing.assert_array_equal(read.labels, LABELS)
    assert [record.file_name for record in read.records][2:4] == [
        f"{names[0]}/00000002.png",
        f"{names[1]}/00000003.png",
    ]
    update_records(folder, weight=np.arange(7) / 7)
    assert read_pool(folder).records[6].weight == 6 / 7


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_its_tools_open_it(tmp_path):
    tars = sorted(map(str, write(tmp_path / "tar", "webdataset").glob("train-*.tar")))
    samples = [*webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")]
    np.testing.assert_array_equal([sample["png"] for sample in samples], PIXELS)
    assert [sample["cls"] for sample in samples] == LABELS
    assert samples[5]["json"] == {"class_name": "cat", "prompt": "prompt 5", "seed": 5}
    records = ArrayRecordDataSource(sorted(map(str, write(tmp_path / "array", "arrayrecord").glob("train-*"))))

    images = [np.asarray(Image.open(io.BytesIO(record)).convert("RGB")) for record in records]
    np.testing.assert_array_equal(images, PIXELS)


class PowerCut(BaseException):
    """Ends a process."""


@pytest.mark.parametrize("image_format", PACKED_FORMATS)
def test_cut_off_at_any_moment_and_continued_it_is_the_same(tmp_path, monkeypatch, image_format):
    whole, number = _files(write(tmp_path / "whole", image_format)), 0
    while True:
        folder, done = tmp_path / str(number), []

        def counted(operation, done=done, number=number):
            def run(*arguments, **options):
                done.append(1)
                if len(done) > number:
                    raise PowerCut
                return operation(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(storage, "append_text", counted(storage.append_text))
            patch.setattr(storage.shutil, "rmtree", counted(storage.shutil.rmtree))
            try:
                write(folder, image_format)
            except PowerCut:
                pass
            else:
                break
        if number % 3 == 0:  # what a process that is killed leaves, as it removes nothing
            (folder / ".train-00000.tar.partial").write_bytes(b"half")
        write(folder, image_format)
        assert _files(folder) == whole, f"cut off before operation {number}"
        assert not [*folder.glob("*.parts")]
        number += 1
    assert number > 15


@pytest.mark.parametrize("image_format", PACKED_FORMATS)
def test_a_pool_that_grows_later_fills_its_last_file(tmp_path, image_format):
    writer = PoolWriter(tmp_path / "grown", NAMES, image_format=image_format)
    _append(writer, 0, 4)
    writer.finish()
    assert len(read_pool(tmp_path / "grown").labels) == 4
    assert _files(write(tmp_path / "grown", image_format, 4)) == _files(write(tmp_path / "whole", image_format))


@pytest.mark.parametrize("image_format", PACKED_FORMATS)
def test_of_several_processes_each_packs_its_own_and_a_gap_is_cut_out_of_the_files(tmp_path, image_format):
    def append(writer, *places):
        records = [_records(place, place + 1)[0] for place in places]
        writer.append(to_float(PIXELS[[*places]]), records, np.array(places))

    first, second = (PoolWriter(tmp_path, NAMES, shard, image_format) for shard in range(2))
    append(first, 0, 1)
    append(second, 2, 3)
    append(first, 4, 5)  # the second process dies before it has written 6
    first.finish(), second.finish()
    assert (tmp_path / f"shard-00001/train-00001.{SUFFIXES[image_format]}").is_file()
    lines = (tmp_path / "shard-00001/metadata.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "shard-00001/metadata.jsonl").write_text(lines[0])  # nor was the line of 3 there
    alone = PoolWriter(tmp_path, NAMES, image_format=image_format)
    assert len(alone) == 3
    assert len([*tmp_path.rglob("train-*")]) == 2 and [record.seed for record in read_records(tmp_path, None)] == [
        0,
        1,
        2,
    ]
    append(alone, 3, 4, 5, 6)
    alone.finish()
    np.testing.assert_array_equal(read_pool(tmp_path, NAMES).images, PIXELS)


def test_a_file_that_is_damaged_or_missing_is_named(packed):
    name, folder = packed
    file = folder / f"train-00001.{SUFFIXES[name]}"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(InputError, match=rf"train-00001\.{SUFFIXES[name]}.*generate the pool again"):
        read_pool(folder)
    file.unlink()
    for use in (read_pool, lambda folder: PoolWriter(folder, NAMES)):
        with pytest.raises(InputError, match=rf"train-00001\.{SUFFIXES[name]} is missing; remove the pool's folder"):
            use(folder)


def test_the_config_names_the_formats():
    assert config.FORMATS == ("png", *PACKED_FORMATS)
