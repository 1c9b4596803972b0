"""Soft labels from an ensemble of classifiers that were trained on the pool as it came.

An image that a generator made of a class may look like another class, or like two: a hard label would then teach the
wrong thing. Distillation (Hinton et al. 2015, arXiv 1503.02531) into a network of the same size (born-again networks,
Furlanello et al. 2018, arXiv 1805.04770), with the synthetic pool as what is distilled on. Ours.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.types import OnStep
from utilgen_jax.valuation.calibration import temperature_scale
from utilgen_jax.valuation.config import EnsembleConfig


def ensemble_labels(
    classifier: Classifier,
    config: ClassifierConfig,
    ensemble: EnsembleConfig,
    real: Examples,
    pool: Examples,
    key: jax.Array,
    on_step: OnStep,
) -> np.ndarray:
    """Trains an ensemble and labels the pool by its mean prediction, calibrated by `temperature_scale`.

    The members train as the final classifier does, but for the mixing of their batches, which makes them less sure of
    themselves and of wrong labels (Zhang et al. 2018, arXiv 1710.09412). Each has initial weights and batches of its
    own. Calibration undoes what smoothed and mixed labels do to their confidence; the final classifier, which trains
    with both again, would otherwise be softened twice.

    Args:
        classifier: the network of every member.
        config: the final classifier's.
        ensemble: number of members, mixing, share of their prediction in a label.
        real: the shots.
        pool: the synthetic images, with the labels that they came with.
        key: PRNG key.
        on_step: called after each step with (steps done by all members, loss on the device).

    Returns:
        Float32 [N, K].
    """
    config = dataclasses.replace(config, mixing=ensemble.mixing)
    predicted = np.zeros((len(pool), pool.num_classes), np.float32)
    for member in range(ensemble.members):

        def on_member_step(step: int, loss: jax.Array, done: int = member * config.steps) -> None:
            on_step(done + step, loss)

        member_key = jax.random.fold_in(key, member)
        params = train_classifier(classifier, config, real, pool, member_key, on_member_step)
        logits = predict_logits(classifier, params, pool.inputs, config.eval_batch_size)
        predicted += softmax(logits, axis=-1) / ensemble.members
    calibrated = temperature_scale(predicted, to_host(pool.labels))
    return ensemble.share * calibrated + (1 - ensemble.share) * to_host(pool.dense().targets)
