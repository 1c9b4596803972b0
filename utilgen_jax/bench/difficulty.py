"""Compares the requested difficulty with the one that an independent classifier measures.

  python -m utilgen_jax.main --config=configs/digits.py:method=difficulty --workdir=runs/difficulty
  python -m utilgen_jax.bench difficulty --workdir=runs/difficulty

The generator of a finished run makes each class at nine difficulties from 0.1 to 0.9. The fold model is a classifier
that shares nothing with the run: other shots, ten a class, and a plain pool of other noise, see
`<workdir>/fold_model`. The figure is Spearman's correlation over single images. Nothing is timed: --repeats and
--warmup have no effect here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from utilgen_jax import checkpoints, data, pipeline
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.config.schema import from_json
from utilgen_jax.config.validation import with_fields
from utilgen_jax.data.images import resize, set_channels
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.setup import config_of
from utilgen_jax.experiment.synthesis import adapter_of
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.report.table import format_table
from utilgen_jax.valuation.difficulty import difficulty

REQUESTED = np.linspace(0.1, 0.9, 9)
FOLD_MODEL_SHOTS, FOLD_MODEL_SEED = 10, 1000  # the seed is counted from the run's
_ADAPTATION = "checkpoints/adaptation_difficulty.safetensors"


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("workdir", "", "of a finished run with method=difficulty", flag_values=values)
    flags.DEFINE_integer("images", 10, "of each class at each difficulty", lower_bound=1, flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = []
    if not (Path(settings["workdir"]) / _ADAPTATION).is_file():
        problems.append(f"--workdir={settings['workdir']}: holds no {_ADAPTATION}; run method=difficulty there first")
    if settings["against"] != "none":
        problems.append("--against: nothing is timed here")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Trains the fold model, generates and measures.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.

    Raises:
        InputError: the run's config cannot be read.
    """
    workdir = Path(settings["workdir"])
    file = workdir / "config.json"
    if not file.is_file():
        raise InputError(f"{file}: is missing; --workdir should be a finished run's")
    config = from_json(file.read_text(encoding="utf-8"))
    changes = {"method": "vanilla", "data.shots": FOLD_MODEL_SHOTS, "seed": config.seed + FOLD_MODEL_SEED}
    fold_model_config = with_fields(config, changes)
    pipeline.run(fold_model_config, workdir / "fold_model")
    fold_model = unflatten_dict(load_file(workdir / "fold_model/checkpoints/classifier_vanilla.safetensors"), sep="/")

    class_names = data.load_source(config.data).train.class_names
    prompts = data.class_prompts(config.generator.prompt, class_names)
    folder = checkpoints.resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
    sd = load_stable_diffusion(folder, jnp.dtype(config.generator.dtype))
    number = settings["images"]
    records = [
        data.PoolRecord(
            label=label, prompt=prompts[label], seed=FOLD_MODEL_SEED * label + image, requested_difficulty=value
        )
        for label in range(len(class_names))
        for image in range(number)
        for value in REQUESTED.tolist()
    ]
    labels, requested = (np.array([getattr(each, name) for each in records]) for name in ("label", "requested_difficulty"))
    adapter, sampling = adapter_of(load_file(workdir / _ADAPTATION)), config_of(SamplingConfig, config.generator)
    images = np.concatenate([*generate_batches(sd, records, adapter, sampling)])
    settings_of_data = config.data
    seen = set_channels(resize(jnp.asarray(images), settings_of_data.image_size), settings_of_data.channels)
    architecture = len(class_names), settings_of_data.image_size, settings_of_data.channels
    classifier = make_classifier(config.classifier, *architecture)
    logits = classification.predict_logits(classifier, fold_model, seen, config.classifier.eval_batch_size)
    measured = difficulty(logits, labels)

    correlation = float(spearmanr(requested, measured).statistic)
    means = [float(measured[requested == value].mean()) for value in REQUESTED]
    rows = [[f"{value:.1f}", f"{mean:.3f}"] for value, mean in zip(REQUESTED, means, strict=True)]
    figures = {
        "benchmark": "difficulty",
        "spearman": correlation,
        "requested": REQUESTED.round(3).tolist(),
        "measured": means,
        "images": len(labels),
        "recognised": float((logits.argmax(-1) == labels).mean()),
    }
    table = format_table(rows, ["requested", "measured, mean"])
    recognised = f"{figures['recognised']:.1%} of the images are recognised"
    return f"{table}\n\nSpearman's correlation {correlation:.2f}; {recognised}\n", figures
