"""A pool that several processes write: each its own shard, and one pool for the reader."""

import json

import jax
import numpy as np
import pytest

from tests.pool.test_storage import LABELS, NAMES, PIXELS, _records
from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError
from utilgen_jax.pool.storage import PoolWriter, read_pool, update_records


def open_shards(folder, number=2) -> list[PoolWriter]:
    return [PoolWriter(folder, NAMES, shard) for shard in range(number)]


def write(writer, *places):
    places = np.array(places)
    writer.append(to_float(PIXELS[places]), [_records(place, place + 1)[0] for place in places], places)


@pytest.fixture
def folder(tmp_path):
    """A pool of 7 images by two processes, in batches of four."""
    first, second = open_shards(tmp_path / "pool")
    write(first, 0, 1)
    write(second, 2, 3)
    write(second, 6)
    write(first, 4, 5)
    return tmp_path / "pool"


def test_the_reader_sees_one_pool_in_the_order_of_its_numbers(folder):
    read = read_pool(folder, NAMES)
    np.testing.assert_array_equal(read.images, PIXELS)
    np.testing.assert_array_equal(read.labels, LABELS)
    assert [record.file_name for record in read.records][1:3] == [
        "shard-00000/cat/00001.png",
        "shard-00001/cat/00002.png",
    ]
    assert [record.prompt for record in read.records] == [f"prompt {place}" for place in range(7)]


def test_each_shard_is_a_pool_of_its_own(folder):
    names = [json.loads(line)["file_name"] for line in (folder / "shard-00001/metadata.jsonl").read_text().splitlines()]
    assert names == ["cat/00002.png", "sea_lion/00003.png", "sea_lion/00006.png"]
    np.testing.assert_array_equal(read_pool(folder / "shard-00001").images, PIXELS[[2, 3, 6]])


def test_values_are_noted_in_the_shards(folder):
    update_records(folder, weight=np.arange(7) / 10)
    assert [record.weight for record in read_pool(folder, NAMES).records] == [place / 10 for place in range(7)]


def test_each_process_notes_the_values_of_its_own_shard(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    update_records(folder, weight=np.ones(7))
    assert [record.weight for record in read_pool(folder, NAMES).records] == [None, None, 1, 1, None, None, 1]
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    update_records(folder, weight=np.ones(7))
    assert {record.weight for record in read_pool(folder, NAMES).records} == {1}


@pytest.mark.parametrize("processes", [None, 2, 3])
def test_a_pool_that_was_cut_off_goes_on_at_the_first_missing_image_by_any_number_of_processes(tmp_path, processes):
    first, second = open_shards(tmp_path)
    write(second, 2, 3)
    write(first, 0, 1)
    write(first, 4)
    write(first, 6)  # 5 was to be the other process's
    with (tmp_path / "shard-00001/metadata.jsonl").open("a") as file:
        file.write('{"half a')
    (tmp_path / "shard-00001/cat/00005.png").write_bytes(b"half an image")
    writers = open_shards(tmp_path, processes) if processes else [PoolWriter(tmp_path, NAMES)]
    assert {len(writer) for writer in writers} == {5}
    assert len(list(tmp_path.rglob("*.png"))) == 5
    write(writers[-1], 5, 6)
    np.testing.assert_array_equal(read_pool(tmp_path, NAMES).images, PIXELS)


def test_an_image_in_two_shards_is_refused(folder):
    line = (folder / "shard-00000/metadata.jsonl").read_text().splitlines()[0]
    with (folder / "shard-00001/metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="image 0 stands in two shards"):
        read_pool(folder, NAMES)
