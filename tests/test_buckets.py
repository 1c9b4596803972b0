"""Commands whose workdir, data or checkpoint is in a bucket."""

import io
import json

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tests.tiny import DIGITS
from utilgen_jax import checkpoints, main
from utilgen_jax.config.command_line import ConfigError, parse_flags, read_config
from utilgen_jax.generate import __main__ as generate
from utilgen_jax.report import __main__ as report


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """A bucket with a folder of images; {path: content} of all that is in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first_machine"))
    MemoryFileSystem.store.clear()
    rng = np.random.default_rng(0)
    for name in (f"{split}/{label}/{n}.png" for split in ("train", "test") for label in "ab" for n in range(3)):
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(png, "png")
        MemoryFileSystem().pipe_file(f"/bucket/images/{name}", png.getvalue())
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


def messages_of(command, capsys, *arguments):
    assert command.main(["command", *arguments]) == 2
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]


def test_a_run_reads_its_images_in_a_bucket_and_leaves_there_what_other_machines_find(
    bucket, tmp_path, monkeypatch, capsys
):
    fields = ("data.source=imagefolder", "data.path=memory://bucket/images", "data.image_size=8", "data.channels=1")
    fields += ("classifier.name=mlp", "classifier.width=8", "classifier.steps=2")
    command = ["main", f"--config={DIGITS}:method=real", *(f"--config.{field}" for field in fields)]
    command.append("--workdir=memory://bucket/runs/first")
    assert main.main(command) == 0
    assert "report: memory://bucket/runs/first/report/index.html" in capsys.readouterr().out
    summary = json.loads(bucket["/bucket/runs/first/summary.json"].getvalue())
    assert summary["num_test"] == 6

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second_machine"))
    assert main.main(command) == 0
    assert "classifier_real: done before" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third_machine"))
    bucket["/bucket/runs/first/report/index.html"].write(b"an old page")
    assert report.main(["report", "--workdir=memory://bucket/runs/first"]) == 0
    assert bucket["/bucket/runs/first/report/index.html"].getvalue().startswith(b"<!doctype html>")

    other = [*command, "--config.seed=3"]
    assert main.main(other) == 2
    assert "--workdir: memory://bucket/runs/first holds a run of another config" in capsys.readouterr().err


def test_a_checkpoint_in_a_bucket_is_copied(bucket):
    embedded = checkpoints.resolve_checkpoint("glyphs")
    MemoryFileSystem().put(str(embedded), "/bucket/checkpoint", recursive=True)
    copy = checkpoints.resolve_checkpoint("memory://bucket/checkpoint")
    names = {path.relative_to(embedded) for path in embedded.rglob("*")}
    assert {path.relative_to(copy) for path in copy.rglob("*")} == names and copy != embedded


def test_what_cannot_be_read_or_written_is_told_before_jax_is_imported(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    (problem,) = messages_of(main, capsys, f"--config={DIGITS}", "--workdir=gs://bucket/run")
    assert problem.startswith("--workdir: gs://bucket/run: ") and "pip install 'utilgen_jax[gs]'" in problem
    (problem,) = messages_of(main, capsys, f"--config={DIGITS}", "--workdir=ftp://host/run")
    assert problem == (
        "--workdir=ftp://host/run: give gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a folder on this machine"
    )
    fields = ["--config.data.source=npz", "--config.data.path=memory://bucket/no.npz", f"--workdir={tmp_path}"]
    (problem,) = messages_of(main, capsys, f"--config={DIGITS}", *fields)
    assert problem == "config.data.path: memory://bucket/no.npz: there is no such file or folder"
    (problem,) = messages_of(report, capsys, "--workdir=memory://bucket/run")
    assert problem == "--workdir: memory://bucket/run: there is no such file or folder"
    (problem,) = messages_of(generate, capsys, "--num=1", "--workdir=memory://bucket/images", f"--out={tmp_path}/out")
    assert problem == "--workdir: memory://bucket/images is no folder of a run; it has no config.json"


def test_paths_that_cannot_be_in_a_bucket_are_named():
    problems = parse_flags(generate.define_flags(), ["generate", "--out=gs://bucket/set"])[1]
    assert problems == ["--out=gs://bucket/set: cannot be in a bucket; give a path on this machine"]
    with pytest.raises(ConfigError, match="config.data.exclude: cannot be in a bucket, 's3://bucket/ids.txt'"):
        read_config(DIGITS, [("data.exclude", "s3://bucket/ids.txt")])
