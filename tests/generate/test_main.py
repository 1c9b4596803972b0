"""`python -m utilgen_jax.generate` end to end, on a run of few steps."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.tiny import DIGITS, TINY
from utilgen_jax import pipeline
from utilgen_jax.config.command_line import read_config
from utilgen_jax.experiment import setup
from utilgen_jax.generate import write
from utilgen_jax.generate.__main__ import main
from utilgen_jax.pool.storage import read_pool
from utilgen_jax.runtime.termination import Terminated


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of the embedded checkpoint, plain images of "zero" and "one"."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    settings = (
        *TINY,
        ("generator.checkpoint", "glyphs"),
        ("generator.batch_size", "2"),
        ("also_synthetic_only", "false"),
    )
    pipeline.run(read_config(f"{DIGITS}:method=vanilla", settings), workdir)
    return workdir


def run(workdir, out, *flags):
    return main(["generate", f"--workdir={workdir}", f"--out={out}", *flags])


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_the_same_set_comes_whole_or_cut_off_or_in_shards(finished, tmp_path, monkeypatch, capsys):
    before = files_of(finished)
    assert run(finished, tmp_path / "whole", "--num=7", "--images_per_file=4") == 0
    whole = files_of(tmp_path / "whole")
    assert files_of(finished) == before
    pool = read_pool(tmp_path / "whole", ("zero", "one"))
    assert pool.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert len({image.tobytes() for image in pool.images}) == 7
    assert not {image.tobytes() for image in pool.images} & {
        image.tobytes() for image in read_pool(finished / "pool/round_00").images
    }
    for record in pool.records:
        assert record.prompt == f"a photo of the digit {record.class_name}" and record.weight == 1.0
        image = Image.open(tmp_path / "whole" / record.file_name)
        assert (image.text["Source"], image.text["checkpoint"]) == ("synthetic", "glyphs")
        assert (image.text["prompt"], image.text["seed"]) == (record.prompt, str(record.seed))
    assert "# 7 synthetic images of 2 classes" in whole["README.md"].decode()

    # Terminated after the first batch of the second part.
    calls = []

    def terminate():
        calls.append(1)
        if len(calls) == 3:
            raise Terminated

    monkeypatch.setattr(write, "check_terminated", terminate)
    assert run(finished, tmp_path / "cut", "--num=7", "--images_per_file=4") == 143
    assert "terminated" in capsys.readouterr().err and not (tmp_path / "cut/README.md").exists()
    assert len([*(tmp_path / "cut/.parts/00001-of-00002").glob("*/*.png")]) == 2
    assert run(finished, tmp_path / "cut", "--num=7", "--images_per_file=4") == 0
    assert files_of(tmp_path / "cut") == whole

    for shard in ("1/2", "0/2"):
        assert run(finished, tmp_path / "shards", "--num=7", "--images_per_file=4", f"--shard={shard}") == 0
        told = capsys.readouterr().out
        assert ("1 of 2 files of other shards are missing" in told) == (shard == "1/2")
    assert files_of(tmp_path / "shards") == whole

    # Once more: nothing is generated, not even the run is read.
    monkeypatch.setattr(write, "set_up", None)
    assert run(finished, tmp_path / "whole", "--num=7", "--images_per_file=4") == 0
    assert "all 7 images are there" in capsys.readouterr().out


@pytest.mark.slow
def test_other_formats_hold_the_same_images(finished, tmp_path):
    import datasets

    assert run(finished, tmp_path / "folder", "--class_counts=one:3", "--seed=1") == 0
    images = read_pool(tmp_path / "folder").images
    assert run(finished, tmp_path / "parquet", "--class_counts=one:3", "--seed=1", "--format=parquet") == 0
    data = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal([np.asarray(image) for image in data["image"]], images)
    assert data["label"][:] == [1, 1, 1] and sorted(entry.name for entry in (tmp_path / "parquet").iterdir()) == [
        "README.md",
        "generate.json",
        "train-00000-of-00001.parquet",
    ]


@pytest.fixture
def unfinished(tmp_path):
    """A folder that looks like that of a finished run of the digits, without results."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"data": {"name": "digits"}, "generator": {"checkpoint": "glyphs"}, "method": "vanilla"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--num or --class_counts: give one of them"),
        (("--num=5", "--class_counts=one:1"), "--num or --class_counts: give one of them"),
        (("--class_counts=one",), "--class_counts: 'one' should be such as daisy:10"),
        (("--class_counts=on:5",), "the run has no class 'on'; the nearest is 'one'"),
        (("--num=5", "--format=zip"), "--format=zip"),
        (("--num=5", "--shard=2/2"), "--shard=2/2: should be i/n with i from 0 to n - 1"),
        (("--num=2", "--shard=0/3"), "2 images, 1 a file, make 2 files for 3 shards"),
    ],
)
def test_mistakes_are_told_before_a_device_is_touched(flags, message, unfinished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "make_mesh", None)
    assert run(unfinished, tmp_path / "out", *flags) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_must_be_finished_and_generate_images(unfinished, tmp_path, capsys):
    (unfinished / "config.json").write_text(json.dumps({"data": {"name": "digits"}, "method": "cutmix"}))
    assert run(unfinished, tmp_path / "out", "--num=5") == 2
    assert "the run's method, cutmix, generates no images" in capsys.readouterr().err
    (unfinished / "config.json").write_text(json.dumps({"method": "nothing"}))
    assert run(unfinished, tmp_path / "out", "--num=5") == 2
    assert "no config of a run of this version" in capsys.readouterr().err
    (unfinished / "summary.json").unlink()
    assert run(unfinished, tmp_path / "out", "--num=5") == 2
    assert "is not finished; run its command again first" in capsys.readouterr().err
    shutil.rmtree(unfinished)
    assert run(unfinished, tmp_path / "out", "--num=5") == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_a_stage_that_is_missing_is_named_and_nothing_written(unfinished, tmp_path, capsys):
    assert run(unfinished, tmp_path / "out", "--num=5", "--seed=1") == 2
    assert "is missing: run the main job on this folder once more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and len([*unfinished.iterdir()]) == 2
