"""Nothing leaks: what a row computes is the same, bit for bit, on data that differ in every image but the shots.

All rows run on scikit-learn's digits three times: as they are; with noise for every image that is no shot; and with
another image for one of the shots, which shows that whatever comes in would be seen here.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.diffusers_checkpoint import write_quick_stable_diffusion
from utilgen_jax import pipeline
from utilgen_jax.config.command_line import read_config
from utilgen_jax.data.image_source import Sources
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.experiment.setup import Shared
from utilgen_jax.methods import METHODS

DIGITS = f"{Path(__file__).parents[1] / 'configs' / 'digits.py'}"
TINY = (
    ("baselines", ""),
    ("data.max_classes", "2"),
    ("data.max_test", "20"),
    ("generator.image_size", "16"),
    ("generator.steps", "2"),
    ("pool.images_per_class", "4"),
    ("adaptation.steps", "2"),
    ("difficulty.steps", "2"),
    ("difficulty.batch_size", "16"),
    ("inversion.steps", "2"),
    ("preference.rounds", "1"),
    ("preference.steps", "2"),
    ("instance.steps", "1"),
    ("instance.sampler_steps", "1"),
    ("joint.steps", "8"),
    ("joint.generated", "2"),
    ("joint.sampler_steps", "1"),
    ("ensemble.members", "1"),
    ("classifier.name", "mlp"),  # quicker to compile
    ("classifier.steps", "5"),
    ("classifier.width", "8"),
    ("utility.steps", "3"),
    # All is exaggerated, so that a difference in what goes in shows in the images' 8 bits.
    ("generator.guidance_scale", "50"),
    ("adaptation.learning_rate", "0.1"),
    ("difficulty.learning_rate", "0.1"),
    ("difficulty.prior_fraction", "0.5"),
    ("inversion.learning_rate", "1"),
    ("preference.learning_rate", "0.1"),
    ("instance.learning_rate", "1"),
    ("joint.learning_rate", "10"),
    ("joint.lora_learning_rate", "0.1"),
    ("classifier.learning_rate", "0.05"),
)
# Rows for ablations are parts of these, but for joint's further ones.
JOINT_ROWS = ["joint_uncertain", "joint_useful", "joint_lora", "joint_weights"]
ROWS = [name for name, method in METHODS.items() if not method.only_in_ablations] + JOINT_ROWS
load_source = load_source  # The fixture below puts another in its place.
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
def domains(tmp_path_factory):
    """{which images are noise: (results of all rows, accuracy of each)}."""
    root = tmp_path_factory.mktemp("domains")
    checkpoint = write_quick_stable_diffusion(root / "checkpoint")
    settings = (*TINY, ("generator.checkpoint", str(checkpoint)))
    whole = load_source(read_config(DIGITS, settings).data)
    shots = few_shot(whole, shots=2, seed=0).real.ids
    is_shot = np.isin(whole.train.ids, shots)
    assert is_shot.sum() == 4
    is_first_shot = np.arange(len(is_shot)) == np.flatnonzero(is_shot)[0]
    noise = {"none": np.zeros_like(is_shot), "others": ~is_shot, "a shot": is_first_shot}
    runs = {}
    for domain, replaced in noise.items():
        folder = root / domain
        shared = Shared(stages=folder / "stages", pools=folder / "pools", shotless_pools=folder / "shotless")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "load_source", lambda settings, replaced=replaced: replace_images(whole, replaced))
            summaries = {
                row: pipeline.run(read_config(f"{DIGITS}:method={row}", settings), root / "runs" / domain / row, shared)
                for row in ROWS
            }
        runs[domain] = results(folder), {row: summary["accuracy"]["final"] for row, summary in summaries.items()}
    return runs


def changed_between(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]


def test_nothing_leaks(domains):
    # One test: two would run in two processes, and each would compile all rows.
    (whole, accuracy), (others, accuracy_on_noise) = domains["none"], domains["others"]
    assert changed_between(whole, others) == []
    assert accuracy != accuracy_on_noise  # What is read of them is read by the final evaluation.

    # A shot is seen by each row.
    changed = changed_between(whole, domains["a shot"][0])
    for row in ROWS:
        assert any(path.startswith(f"stages/classifier_{row}.") for path in changed), row
        generation = METHODS[row].generation
        if generation is not None:
            folder = f"{'pools' if generation.uses_shots else 'shotless'}/{generation.name}/"
            assert any(path.startswith(folder) for path in whole), row
            # Another shot need not change which few of the images are chosen; it does change their values.
            made = (folder, f"stages/value_{generation.name}_")
            assert any(path.startswith(made) for path in changed) == generation.uses_shots, row

    # All that the rows learn was looked at.
    stages = {path.split("/")[1].split(".")[0] for path in whole if path.startswith("stages/")}
    expected = {"difficulty_of_shots", "captions", "tokens", "adaptation_datadream", "adaptation_difficulty"}
    expected |= {
        "value_saflex",
        "value_utilgen",
        "preference_utilgen_model_0",
        "ensemble_phrases",
        "ensemble_joint_uncertain",
    }
    expected |= {"steering_joint_lora", "value_joint_useful_0", "value_joint_weights"}
    assert expected | {f"classifier_{row}" for row in ROWS} <= stages
