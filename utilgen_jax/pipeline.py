"""The stages of a run, in the order in which they happen, on one page.

split → classifier on real images → difficulty → synthetic pool → value of the pool → classifier on real and synthetic
images → evaluation → summary and report. The result of each stage is on disk; a run that is started again continues
after the last finished one (see `stages`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from utilgen_jax import data, report
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.train import TrainingSet
from utilgen_jax.data.images import to_float
from utilgen_jax.experiment.appraisal import (
    Params,
    appraise,
    as_classifier_input,
    pool_training_set,
    predict,
    training_set,
    weighted,
)
from utilgen_jax.experiment.refinement import refine_pool
from utilgen_jax.experiment.results import log_stage, print_table, write_results
from utilgen_jax.experiment.setup import CLASSIFIER_KEY, Job, Shared, prepare
from utilgen_jax.experiment.synthesis import Made, loader, make_pool, with_words
from utilgen_jax.experiment.workdir import versions, write_summary
from utilgen_jax.methods import METHODS, PLAIN, Generation
from utilgen_jax.runtime import sharding
from utilgen_jax.valuation.difficulty import difficulty
from utilgen_jax.valuation.ensemble import ensemble_labels


def run(config: ConfigDict, workdir: str | Path, shared: Shared | None = None) -> dict[str, Any]:
    """Runs a method and its baselines from config to report, and prints the table.

    Args:
        config: checked, see `cli.read_config`.
        workdir: for everything that the run writes.
        shared: for a run that is part of a comparison. It writes its summary, but no report and no table, and notes no
            weights in the pool.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: data, checkpoint or workdir do not suit; nothing has been written then.
        FloatingPointError: a loss or an image is not finite.
    """
    workdir = Path(workdir)
    job = prepare(config, workdir, shared)
    generation = METHODS[config.method].generation
    pool, values = None, {}
    with jax.set_mesh(job.mesh), report.MetricsWriter(workdir, enabled=job.is_first) as metrics:
        real = training_set(to_float(job.split.real.images), job.split.real.labels)
        classifiers = {"real": _train(job, metrics, "real", real, None)}
        real_difficulty = _measure_difficulty(job, classifiers["real"], real)
        pools = _make_pools(job, metrics, classifiers["real"], real)
        for row in job.rows[1:]:
            row_generation = METHODS[row].generation
            if row_generation is None:
                classifiers[row] = _train(job, metrics, row, real, None)
                continue
            made = pools[row_generation]
            pool = made.pool
            synthetic = pool_training_set(job, row_generation, pool)
            weighting = METHODS[row].weighting
            values[row] = appraise(job, metrics, f"value_{row}", weighting, real, synthetic, classifiers["real"])
            if METHODS[row].labels == "ensemble":
                said = made.soft_labels
                if said is None:
                    said = ensemble_labels(job, metrics, row_generation, real, synthetic)
                values[row]["soft_label"] = said
            classifiers[row] = _train(job, metrics, row, real, weighted(synthetic, values[row]))
        if generation is not None and shared is None:
            pool = _note_values(job, generation, pools[generation].round, values[config.method])
        accuracy = {row: _evaluate(job, row, params) for row, params in classifiers.items()}

    summary = {
        "method": config.method,
        "dataset": config.data.name,
        "shots": config.data.shots,
        "seed": config.seed,
        "accuracy": {"real_only": accuracy["real"]}
        | ({"vanilla": accuracy["vanilla"]} if "vanilla" in accuracy else {})
        | {"final": accuracy[config.method]},
        "num_real": len(job.split.real),
        "num_synthetic": 0 if pool is None else len(pool.labels),
        "num_test": len(job.split.test),
        "seconds": job.stages.seconds,
        "versions": versions(),
    }
    if job.is_first and shared is None:
        page = write_results(workdir, config, summary, job.split.real, pool, real_difficulty, values.get(config.method))
        print_table(summary)
        print(f"report: {page}")
    if job.is_first:
        # Last: a summary says that the run is whole.
        write_summary(workdir, summary)
    return summary


def _train(
    job: Job, metrics: report.MetricsWriter, row: str, real: TrainingSet, synthetic: TrainingSet | None
) -> Params:
    """The classifier of one row of the table, on real and, if any, synthetic images."""
    name = f"classifier_{row}"

    def compute() -> dict[str, np.ndarray]:
        with log_stage(metrics, name, job.classifier_config.steps, job.config.log_every_steps) as on_step:
            params = classification.train_classifier(
                job.classifier, job.config_of_row(row), real, synthetic, job.key(CLASSIFIER_KEY), on_step
            )
        return {path: sharding.to_host(leaf) for path, leaf in flatten_dict(params, sep="/").items()}

    return unflatten_dict(job.stages.run(name, compute), sep="/")


def _measure_difficulty(job: Job, params: Params, real: TrainingSet) -> np.ndarray:
    """How hard the classifier of the real images finds each of them."""

    def compute() -> dict[str, np.ndarray]:
        return {"real": difficulty(predict(job, params, real.images), job.split.real.labels)}

    return job.stages.run("difficulty", compute)["real"]


def _cross_fitted_difficulty(
    job: Job, metrics: report.MetricsWriter, real: TrainingSet, plain: TrainingSet
) -> tuple[np.ndarray, np.ndarray]:
    """How hard each shot and each plain synthetic image is for a classifier that was not trained on it.

    Each is trained on shots and synthetic images of the other folds: those trained on an image know it, and from a
    handful of shots alone they know too little of the others. (Digits, 2 shots: Spearman's correlation with an
    independent classifier's verdict on the plain pool is 0.68 so, and 0.30 by the classifier of the shots alone.)
    """

    def compute() -> dict[str, np.ndarray]:
        hard = {"real": np.zeros(len(real.labels), np.float32), "plain": np.zeros(len(plain.labels), np.float32)}
        # Pools hold the classes in turn: whole turns go to a fold.
        folds_of_plain = np.arange(len(plain.labels)) // job.num_classes % len(job.folds)
        total = job.classifier_config.steps * len(job.folds)
        with log_stage(metrics, "difficulty_of_shots", total, job.config.log_every_steps) as on_step:
            for number, fold in enumerate(job.folds):

                def on_fold_step(step: int, loss: jax.Array, done: int = number * job.classifier_config.steps) -> None:
                    on_step(done + step, loss)

                params = classification.train_classifier(
                    job.classifier,
                    job.classifier_config,
                    real.take(fold.train_indices),
                    plain.take(np.flatnonzero(folds_of_plain != number)),
                    job.key(CLASSIFIER_KEY),
                    on_fold_step,
                )
                for name, images, chosen in (
                    ("real", real, fold.validation_indices),
                    ("plain", plain, np.flatnonzero(folds_of_plain == number)),
                ):
                    logits = predict(job, params, images.images[chosen])
                    hard[name][chosen] = difficulty(logits, sharding.to_host(images.labels)[chosen])
        return hard

    found = job.stages.run("difficulty_of_shots", compute)
    return found["real"], found["plain"]


def _make_pools(
    job: Job, metrics: report.MetricsWriter, real_classifier: Params, real: TrainingSet
) -> dict[Generation, Made]:
    """The pool of each way of generation that a row needs, and before them those that they build on."""
    load = loader(job)
    load_words = cache(lambda: with_words(job, metrics, load, make(PLAIN).pool))
    pools: dict[Generation, Made] = {}

    def make(generation: Generation) -> Made:
        if generation in pools:
            return pools[generation]
        load_own = load_words() if generation.prompt == "token" else load
        if generation.refines is not None:
            base = make(generation.refines)
            pools[generation] = refine_pool(job, metrics, load_own, generation, base, real, real_classifier)
            return pools[generation]
        # A generator is adapted beside images of its own.
        plain = make(PLAIN).pool if generation.adaptation != "none" else None
        difficulties = None
        if plain is not None and generation.adaptation == "difficulty":
            images = training_set(as_classifier_input(job.config, plain.images), plain.labels)
            difficulties = _cross_fitted_difficulty(job, metrics, real, images)
        pools[generation] = make_pool(job, metrics, load_own, generation, plain, difficulties)
        return pools[generation]

    for row in job.rows:
        generation = METHODS[row].generation
        if generation is not None:
            make(generation)
    return pools


def _note_values(job: Job, generation: Generation, round_number: int, values: dict[str, np.ndarray]) -> data.Pool:
    """Writes what is known of the pool's images beside them, for a person to read."""
    folder = job.pool_folder(generation, round_number)
    if job.is_first:
        columns = {name: values[name].tolist() for name in ("difficulty", "weight", "soft_label") if name in values}
        data.update_records(folder, **columns)
    return data.read_pool(folder, job.split.real.class_names)


def _evaluate(job: Job, row: str, params: Params) -> float:
    """The accuracy on the test images, which nothing but this reads."""

    def compute() -> dict[str, np.ndarray]:
        logits = predict(job, params, to_float(job.split.test.images))
        return {"accuracy": np.array((logits.argmax(-1) == job.split.test.labels).mean())}

    return float(job.stages.run(f"evaluation_{row}", compute)["accuracy"])
