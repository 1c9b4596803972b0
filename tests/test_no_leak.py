"""Nothing leaks: what a method computes is the same, bit for bit, on data that differ in every image but the shots.

All methods run on scikit-learn's digits three times: as they are; with noise for every image that is no shot; and with
another image for one of the shots, which shows that whatever comes in would be seen here.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.tiny import DIGITS, NAMES, TINY
from utilgen_jax import pipeline
from utilgen_jax.config.command_line import read_config
from utilgen_jax.data.image_source import Sources
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.experiment import experiment as experiment_module
from utilgen_jax.experiment import setup
from utilgen_jax.experiment.experiment import SharedDirs
from utilgen_jax.experiment.outline import outline
from utilgen_jax.methods import METHODS
from utilgen_jax.valuation.cross_fit import PoolValues

pytestmark = pytest.mark.slow


def replace_images(sources: Sources, replaced: np.ndarray) -> Sources:
    """Noise in place of some images of the digits, all else as it was."""
    digits = sources.train.source  # Below the choice of classes.
    places = sources.train.indices[replaced]
    images = digits.images.copy()
    images[places] = np.random.default_rng(5).integers(0, 256, images[places].shape, np.uint8)
    changed = dataclasses.replace(digits, images=images)
    return Sources(dataclasses.replace(sources.train, source=changed), None)


def results(folder: Path) -> dict[str, object]:
    """All that the runs of a folder left for later stages, by path; not what the final evaluation says."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors" and not path.name.startswith("evaluation_"):
            found |= {f"{name}:{key}": tensor.tobytes() for key, tensor in load_file(path).items()}
        elif path.suffix in (".png", ".jsonl"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{which images are noise: (results of all methods, accuracy of each)}."""
    root = tmp_path_factory.mktemp("runs")
    checkpoint = write_quick_stable_diffusion(root / "checkpoint")
    settings = (*TINY, ("generator.checkpoint", str(checkpoint)))
    whole = load_source(read_config(DIGITS, settings).data)
    shots = few_shot(whole, shots=2, seed=0).real.ids
    is_shot = np.isin(whole.train.ids, shots)
    assert is_shot.sum() == 4
    is_first_shot = np.arange(len(is_shot)) == np.flatnonzero(is_shot)[0]
    noise = {"none": np.zeros_like(is_shot), "others": ~is_shot, "a shot": is_first_shot}
    found = {}
    for kind, replaced in noise.items():
        folder = root / kind
        shared = SharedDirs(stages=folder / "stages", pools=folder / "pools", shotless_pools=folder / "shotless")
        told: list[dict] = []
        with pytest.MonkeyPatch.context() as patch:
            # After so few steps weights may contradict what the images do, and then nothing is learnt from them.
            patch.setattr(PoolValues, "contradictory", False)
            patch.setattr(
                experiment_module, "outline", lambda experiment, told=told: told.append(outline(experiment)) or told[-1]
            )
            patch.setattr(setup, "load_source", lambda settings, replaced=replaced: replace_images(whole, replaced))
            summaries = {
                name: pipeline.run(
                    read_config(f"{DIGITS}:method={name}", settings), root / "runs" / kind / name, shared
                )
                for name in NAMES
            }
        # The progress line knows the stages before they run.
        for summary, stages in zip(summaries.values(), told, strict=True):
            assert set(summary["seconds"]) == set(stages), summary["method"]
        found[kind] = results(folder), {name: summary["accuracy"]["final"] for name, summary in summaries.items()}
    return found


def changed_between(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]


def test_nothing_leaks(runs):
    # One test: two would run in two processes, and each would compile all methods.
    (whole, accuracy), (others, accuracy_on_noise) = runs["none"], runs["others"]
    assert changed_between(whole, others) == []
    assert accuracy != accuracy_on_noise  # What is read of them is read by the final evaluation.

    # A shot is seen by each method.
    changed = changed_between(whole, runs["a shot"][0])
    for name in NAMES:
        assert any(path.startswith(f"stages/classifier_{name}.") for path in changed), name
        pool = METHODS[name].pool
        if pool is not None:
            folder = f"{'pools' if pool.uses_shots else 'shotless'}/{pool.name}/"
            assert any(path.startswith(folder) for path in whole), name
            # Where joint's gate is closed its images are the plain ones; another shot changes what the gate is about.
            made = re.compile(rf"{folder}|stages/joint_{pool.name}\.")
            assert any(made.match(path) for path in changed) == pool.uses_shots, name

    # Everything that the methods learn was compared.
    stages = {path.split("/")[1].split(".")[0] for path in whole if path.startswith("stages/")}
    expected = {"difficulty_of_shots", "captions", "class_tokens", "lora_datadream", "lora_difficulty"}
    expected |= {
        "practice_deliberate_practice_0",
        "value_saflex",
        "value_utilgen",
        "dpo_utilgen_dpo_0",
        "ensemble_joint",
        "value_joint",
    }
    expected |= {"joint_joint", "gate_joint", "joint_joint_without_gate", "pool_joint_without_gate"}
    assert expected | {f"classifier_{name}" for name in NAMES} <= stages
