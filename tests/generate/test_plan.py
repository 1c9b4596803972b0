"""Which images there are to be, in which files, and whose folder it is."""

import json

import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.generate.plan import SETTINGS, Part, claim_folder, class_counts, split_in_parts

NAMES = ("daisy", "tulip", "rose: red")


def test_images_are_shared_evenly():
    assert class_counts({"num": 8}, NAMES).tolist() == [3, 3, 2]
    assert class_counts({"num": 1}, NAMES).tolist() == [1, 0, 0]


def test_or_counted_by_class():
    counts = class_counts({"num": 0, "class_counts": ["tulip:2", " rose: red:5"]}, NAMES)
    assert counts.tolist() == [0, 2, 5]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["tulp:1"], "no class 'tulp'; the nearest is 'tulip'"),
        (["tulip:1", "tulip:2"], "'tulip' is given twice"),
        (["tulip:0"], "no image of any class"),
    ],
)
def test_mistakes_in_counts_are_told(texts, message):
    with pytest.raises(InputError, match=message):
        class_counts({"num": 0, "class_counts": texts}, NAMES)


def test_parts_follow_each_other():
    assert split_in_parts(7, 3, 2) == [Part(0, 3, 0, 3), Part(1, 3, 3, 6), Part(2, 3, 6, 7)]
    assert Part(3, 10, 0, 1).name == "00003-of-00010"
    assert [part.stop - part.start for part in split_in_parts(1100, 0, 1)] == [512, 512, 76]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 10])
def test_every_shard_has_a_part(num_shards):
    parts = split_in_parts(10, 0, num_shards)
    assert len(parts) >= num_shards and parts[-1].stop == 10
    assert all(before.stop == after.start for before, after in zip(parts, parts[1:], strict=False))


def test_more_shards_than_files_are_refused():
    with pytest.raises(InputError, match="10 images, 5 a file, make 2 files for 3 shards"):
        split_in_parts(10, 5, 3)


def test_a_folder_is_of_one_data_set(tmp_path):
    out = tmp_path / "set"
    claim_folder(out, {"seed": 0}, write=False)
    assert not out.exists()
    claim_folder(out, {"seed": 0, "counts": {"a": 1}}, write=True)
    claim_folder(out, {"seed": 0, "counts": {"a": 1}}, write=False)
    assert json.loads((out / SETTINGS).read_text()) == {"seed": 0, "counts": {"a": 1}}
    with pytest.raises(InputError, match="another data set.*\n  seed: 0 before, 1 now"):
        claim_folder(out, {"seed": 1, "counts": {"a": 1}}, write=True)
    (out / SETTINGS).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        claim_folder(out, {"seed": 0}, write=False)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(1))
    with pytest.raises(InputError, match="holds other files"):
        claim_folder(tmp_path, {"seed": 0}, write=True)
    assert not (tmp_path / SETTINGS).exists()
