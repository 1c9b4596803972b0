"""Compares the requested difficulty with the one that an independent classifier measures.

  python -m utilgen_jax.main --config=configs/digits.py:method=difficulty --workdir=runs/difficulty
  python -m utilgen_jax.bench difficulty --workdir=runs/difficulty

The generator of a finished run makes each class at nine difficulties from 0.1 to 0.9. The independent classifier
shares nothing with the run: other shots, ten a class, and a plain pool of other noise, see
`<workdir>/independent`. The figure is Spearman's correlation over single images. Nothing is timed: --repeats and
--warmup have no effect here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.stats import spearmanr

from utilgen_jax import checkpoints, pipeline
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.classifier.train import predict_logits
from utilgen_jax.config.schema import from_flat, from_json
from utilgen_jax.config.validation import checked, with_fields
from utilgen_jax.data.sources import load_source
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.stages import read_result
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.prompts.templates import class_prompts
from utilgen_jax.report.table import format_table
from utilgen_jax.valuation.difficulty import difficulty

REQUESTED = np.linspace(0.1, 0.9, 9)
INDEPENDENT_SHOTS, INDEPENDENT_SEED = 10, 1000  # the seed is counted from the run's
_ADAPTER = "checkpoints/lora_difficulty.safetensors"


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("workdir", "", "of a finished run with method=difficulty", flag_values=values)
    flags.DEFINE_integer("images", 10, "of each class at each difficulty", lower_bound=1, flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = []
    if not (Path(settings["workdir"]) / _ADAPTER).is_file():
        problems.append(f"--workdir={settings['workdir']}: holds no {_ADAPTER}; run method=difficulty there first")
    if settings["against"] != "none":
        problems.append("--against: nothing is timed here")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Trains the independent classifier, generates and measures.

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
    try:
        config = checked(from_flat(from_json(file.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise InputError(f"{file}: no config of a run ({error}); --workdir should be a finished run's") from error
    changes = {"method": "vanilla", "data.shots": INDEPENDENT_SHOTS, "seed": config.seed + INDEPENDENT_SEED}
    pipeline.run(with_fields(config, changes), workdir / "independent")
    params = read_result(workdir / "independent/checkpoints/classifier_vanilla.safetensors", dict)

    class_names = load_source(config.data).train.class_names
    prompts = class_prompts(config.prompts.template, class_names)
    folder = checkpoints.resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
    sd = load_stable_diffusion(folder, jnp.dtype(config.generator.dtype))
    records = [
        PoolRecord(
            label=label, prompt=prompts[label], seed=INDEPENDENT_SEED * label + image, requested_difficulty=value
        )
        for label in range(len(class_names))
        for image in range(settings["images"])
        for value in REQUESTED.tolist()
    ]
    labels, requested = (
        np.array([getattr(each, name) for each in records]) for name in ("label", "requested_difficulty")
    )
    adapter = read_result(workdir / _ADAPTER, Adapter)
    images = np.concatenate([*generate_batches(sd, records, adapter, config.generator)])
    view = ClassifierInput(len(class_names), config.data.image_size, config.data.channels)
    classifier = make_classifier(config.classifier, view.num_classes, view.image_size, view.channels)
    logits = predict_logits(classifier, params, view.images(images), config.classifier.eval_batch_size)
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
