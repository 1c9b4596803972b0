"""The way from the hub: checkpoint, captioner and images of one that is made here, and of none that answers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.captioner_checkpoint import blip, write_captioner
from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.fake_hub import fake_hub
from utilgen_jax.checkpoints.published import PUBLISHED

ROOT = Path(__file__).parent.parent
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # quick to compile, for one device
QUICK = (
    "--config.classifier.steps=3",
    "--config.generator.steps=2",
    "--config.generator.image_size=16",
    "--config.pool.images_per_class=2",
    "--config.data.shots=2",
    "--config.also_synthetic_only=False",
)


def main(tmp_path, endpoint, *arguments):
    """The command as a user gives it, with caches of its own; its result and the seconds that it took."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    environment = os.environ | own | {"XLA_FLAGS": FLAGS}
    start = time.monotonic()
    command = [sys.executable, "-m", "utilgen_jax.main", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    return done, time.monotonic() - start


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A checkpoint under the id of `sd15` and a captioner, and a data set of two classes."""
    folder = tmp_path_factory.mktemp("hub")
    checkpoint = write_quick_stable_diffusion(folder / "checkpoint")
    write_captioner(folder / "captioner", blip)
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    (folder / "insects" / "data").mkdir(parents=True)
    for split, number in (("train", 8), ("test", 6)):
        images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(number)]
        rows = {"img": images, "label": [place % 2 for place in range(number)]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "insects" / "data" / f"{split}-00000-of-00001.parquet")
    models = {PUBLISHED["sd15"].hub_id: checkpoint, "someone/captioner": folder / "captioner"}
    return models, {"someone/insects": folder / "insects"}


@pytest.mark.slow
def test_a_run_downloads_its_checkpoint_and_its_images_once(repositories, tmp_path):
    arguments = ("--config=cifar:runlocal,method=captions", *QUICK, "--config.generator.checkpoint=sd15")
    arguments += ("--config.data.source=hf", "--config.data.name=someone/insects", "--config.baselines=")
    arguments += ("--config.prompts.captions=someone/captioner",)
    with fake_hub(*repositories) as (endpoint, asked):
        done, _ = main(tmp_path, endpoint, *arguments)
        assert done.returncode == 0, done.stderr
    (workdir,) = (tmp_path / "runs").iterdir()
    assert done.stdout.startswith(f"workdir: runs/{workdir.name}\n")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["dataset"] == "someone/insects" and summary["num_real"] == 4 and summary["num_test"] == 6
    assert any("unet" in request for request in asked)
    assert len((workdir / "captions.jsonl").read_text().splitlines()) == 4
    # Without the hub, from the cache, the same run goes on and finds all done.
    again, _ = main(tmp_path, endpoint, *arguments)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=imagefolder:runlocal,path=PHOTOS,checkpoint=sd15",), "the Hugging Face hub cannot be reached"),
        (("--config=cifar:runlocal", "--config.data.source=hf", "--config.data.name=a/b"), "hub cannot be reached"),
        (("--config=digits:runlocal,method=captions", "--config.prompts.captions=a/b"), "hub cannot be reached"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_told_once_and_soon(tmp_path, arguments, message):
    rng = np.random.default_rng(0)
    for label in "ab":
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(5):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    arguments = [argument.replace("PHOTOS", str(tmp_path / "photos")) for argument in arguments]
    # Nobody listens at port 9.
    done, seconds = main(tmp_path, "http://127.0.0.1:9", *arguments)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line and "hf download" in line
    assert seconds < 30
