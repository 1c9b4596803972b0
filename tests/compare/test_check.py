"""Before its first run a comparison reads what all its runs read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import TINY
from utilgen_jax import pipeline
from utilgen_jax.compare import __main__ as compare
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.experiment.workdir import write_summary
from utilgen_jax.pipeline import methods_of

IMAGES = f"{Path(__file__).parents[2] / 'configs' / 'imagefolder.py'}:runlocal"


@pytest.fixture
def runs(monkeypatch):
    """Which runs there were; each takes no time, but sets up and notes its input."""
    seen = []

    def run(config, workdir, shared):
        seen.append((config.data.shots, config.seed, config.method))
        with set_up(config, workdir, shared, methods_of(config)):
            summary = {"method": config.method, "shots": config.data.shots, "seed": config.seed}
            summary |= {"accuracy": {"real_only": 0.5, "final": 0.5}, "num_synthetic": 0, "seconds": {}}
            write_summary(workdir, summary)

    monkeypatch.setattr(pipeline, "run", run)
    return seen


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 3)):
        for label in "ab":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for image in range(number):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"images/{split}/{label}/{image}.png")
    return tmp_path / "images"


def run_compare(tmp_path, *arguments):
    fields = [f"--config.{path}={text}" for path, text in TINY]
    own = ["--config.generator.checkpoint=glyphs", "--config.generator.image_size=32", "--config.data.shots=2"]
    own.append("--config.prompts.captions=tones")
    argv = ["compare", f"--config={IMAGES}", f"--config.data.path={tmp_path / 'images'}", *fields, *own]
    return compare.main([*argv, f"--workdir={tmp_path / 'run'}", "--methods=real,vanilla,captions", *arguments])


def test_a_broken_shot_of_the_last_seed_is_told_before_the_first_run(tmp_path, images, runs, capsys):
    for label in "ab":
        for file in (images / "train" / label).iterdir():
            file.write_bytes(b"broken")
    assert run_compare(tmp_path, "--shots=1,2", "--seeds=3") == 2
    assert "the image cannot be decoded" in capsys.readouterr().err
    assert runs == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["prompts.captions=none.jsonl", "data.class_names=n01440764,n01440765"])
def test_what_a_later_method_wants_is_told_before_the_first_run(tmp_path, images, runs, capsys, field):
    assert run_compare(tmp_path, f"--config.{field}") == 2
    assert ("no such file of captions" if "captions" in field else "WordNet id") in capsys.readouterr().err
    assert runs == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"), [("test", "pixels of the test images"), ("train", "pixels of the few-shot")]
)
def test_a_comparison_goes_on_with_the_same_images_only(tmp_path, images, runs, capsys, change, told):
    assert run_compare(tmp_path, "--seeds=1") == 0
    assert run_compare(tmp_path, "--seeds=1") == 0
    assert len(runs) == 3
    notes = sorted(str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("inputs.json"))
    assert notes == ["pool/seed_0/inputs.json", "shots_2/seed_0/stages/inputs.json"]
    shared = json.loads((tmp_path / "run" / notes[0]).read_text())
    assert {name.partition(":")[0] for name in shared} == {"class names", "config.generator.checkpoint"}
    for label, other in (("a", "x"), ("b", "a"), ("x", "b")):
        os.rename(images / change / label, images / change / other)
    assert run_compare(tmp_path, "--seeds=2") == 2
    assert told in capsys.readouterr().err
    assert len(runs) == 3
    assert run_compare(tmp_path, "--seeds=2", "--norun") == 0


def test_a_second_comparison_on_the_folder_is_told_who_runs(tmp_path, images, runs, capsys):
    code = "import sys; from pathlib import Path; from utilgen_jax.runtime.folder_lock import locked_folder\n"
    code += f"with locked_folder(Path({str(tmp_path / 'run')!r})):\n    print(flush=True)\n    sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert run_compare(tmp_path) == 2
        assert f"is in use by another run (process {other.pid} on " in capsys.readouterr().err
        assert runs == []
