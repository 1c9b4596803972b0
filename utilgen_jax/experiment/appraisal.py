"""Stages that look at a pool with the eyes of a classifier: how hard its images are, and what they are worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from utilgen_jax import data, report
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.train import TrainingSet
from utilgen_jax.data.images import resize, set_channels, to_float
from utilgen_jax.experiment.results import log_stage
from utilgen_jax.experiment.setup import VALUE_KEY, Job, config_of
from utilgen_jax.methods import Generation
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.runtime import sharding
from utilgen_jax.valuation.cross_fit import ValuationConfig, value_pool
from utilgen_jax.valuation.difficulty import difficulty

Params = Any

_FOLD_MODELS = "fold models/"


def as_classifier_input(config: ConfigDict, images: np.ndarray) -> jax.Array:
    """Images of a pool uint8 [N, H, W, 3] in the size and channels that the classifier sees, float32 in [-1, 1]."""
    return set_channels(resize(to_float(images), config.data.image_size), config.data.channels)


def training_set(images: Any, labels: np.ndarray) -> TrainingSet:
    """A training set on the mesh, all weights 1, of float images [N, H, W, C]."""
    return sharding.replicate(TrainingSet(images, jnp.asarray(labels), jnp.ones(len(labels))))


def pool_training_set(job: Job, generation: Generation, pool: data.Pool) -> TrainingSet:
    """A pool as the classifier sees it, all weights 1; with what was asked for in numbers where that varies."""
    images = training_set(as_classifier_input(job.config, pool.images), pool.labels)
    if generation.prompt != "phrases":
        return images
    groups = PromptAttributes.parse(job.config.generator.phrases)
    options = np.stack([groups.parse_prompt(record.prompt or "") for record in pool.records])
    return dataclasses.replace(images, attributes=sharding.replicate(groups.one_hot(options)))


def predict(job: Job, params: Params, images: Any) -> np.ndarray:
    """The logits [N, K] of a classifier."""
    return classification.predict_logits(job.classifier, params, images, job.config.classifier.eval_batch_size)


def appraise(
    job: Job,
    metrics: report.MetricsWriter,
    name: str,
    weighting: str,
    real: TrainingSet,
    synthetic: TrainingSet,
    params: Params,
) -> dict[str, np.ndarray]:
    """What each image of a pool is worth.

    Args:
        job: the run.
        metrics: its writer.
        name: of the stage.
        weighting: "uniform", or one of `valuation.WEIGHTINGS`.
        real: the shots.
        synthetic: the pool.
        params: of the classifier of real images alone, which says how hard an image is.

    Returns:
        "weight", "difficulty" and, if weighed, "loss", [M] each; "soft_label" [M, K] of a weighting that makes some;
        and the fold models of `PoolValue`, see `fold_models_of`.
    """
    config = job.config

    def compute() -> dict[str, np.ndarray]:
        hard = difficulty(predict(job, params, synthetic.images), sharding.to_host(synthetic.labels))
        if weighting == "uniform":
            return {"difficulty": hard, "weight": np.ones_like(hard)}
        valuation_config = config_of(ValuationConfig, config.utility)
        with log_stage(metrics, name, valuation_config.steps * len(job.folds), config.log_every_steps) as on_step:
            value = value_pool(
                job.classifier,
                weighting,
                job.classifier_config,
                valuation_config,
                job.num_classes,
                real,
                synthetic,
                job.folds,
                job.key(VALUE_KEY),
                lambda step, seen: on_step(
                    step, seen.train_loss, seen.first_nonfinite, validation_loss=seen.validation_loss
                ),
            )
        soft = {} if value.soft_labels is None else {"soft_label": value.soft_labels}
        fold_models = {_FOLD_MODELS + path: leaf for path, leaf in flatten_dict(value.fold_models, sep="/").items()}
        return {"difficulty": hard, "weight": value.weights, "loss": value.losses, **soft, **fold_models}

    return job.stages.run(name, compute)


def fold_models_of(values: dict[str, np.ndarray]) -> dict[str, Params]:
    """The fold models of a pool that `appraise` has seen, for `valuation.predict_weights`."""
    flat = {path.removeprefix(_FOLD_MODELS): leaf for path, leaf in values.items() if path.startswith(_FOLD_MODELS)}
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")


def weighted(synthetic: TrainingSet, values: dict[str, np.ndarray]) -> TrainingSet:
    """The pool as a classifier is trained on it: weights of mean 1, so that it counts the same in every row."""
    return dataclasses.replace(
        synthetic,
        weights=sharding.replicate(values["weight"] / values["weight"].mean()),
        soft_labels=sharding.replicate(values.get("soft_label")),
    )
