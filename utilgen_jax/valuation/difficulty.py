"""How hard an image is for a classifier (difficulty-controlled diffusion, arXiv 2411.18109)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, train_classifiers
from utilgen_jax.classifier.train import predict_logits
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.runtime.training_loop import TrainingLoop


def difficulty(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """s = 1 - softmax probability of the true class: float32 [N] in [0, 1], of logits [N, K] and labels int [N]."""
    return (1.0 - softmax(logits, axis=-1)[np.arange(len(labels)), labels]).astype(np.float32)


def cross_fitted_difficulty(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    pool: Examples,
    folds: Sequence[Fold],
    key: jax.Array,
    loop: TrainingLoop,
) -> tuple[np.ndarray, np.ndarray]:
    """Measures the difficulty of shots and pool, each image by a classifier that was not trained on it.

    Each classifier trains on the shots and synthetic images of the other folds: one that was trained on an image knows
    it, and a classifier of a handful of shots alone knows too little of the rest (measured: methods/README.md).

    Args:
        classifier: the network.
        config: its training.
        real: the shots.
        pool: synthetic images, the classes in turn.
        folds: of the shots.
        key: PRNG key, the same for each fold.
        loop: runs the steps, a part of it those of each fold.

    Returns:
        Float32 in [0, 1] of the shots [N] and of the pool [M].
    """
    parts = (real, pool)
    measured = tuple(np.zeros(len(part), np.float32) for part in parts)
    # The pool holds the classes in turn: whole turns go to a fold.
    folds_of_pool = np.arange(len(pool)) // pool.num_classes % len(folds)
    trainings = [
        Training(real.take(fold.train_indices), pool.take(np.flatnonzero(folds_of_pool != number)), key)
        for number, fold in enumerate(folds)
    ]
    trained = train_classifiers(classifier, config, trainings, loop)
    for number, (fold, params) in enumerate(zip(folds, trained, strict=True)):
        held_out = (fold.validation_indices, np.flatnonzero(folds_of_pool == number))
        for part, values, chosen in zip(parts, measured, held_out, strict=True):
            logits = predict_logits(classifier, params, part.inputs[chosen], config.eval_batch_size)
            values[chosen] = difficulty(logits, to_host(part.labels)[chosen])
    return measured[0], measured[1]


def balanced_resample(difficulties: np.ndarray, number: int, rng: np.random.Generator, bins: int = 10) -> np.ndarray:
    """Draws images so that easy and hard ones are equally frequent; ours (measured: methods/README.md).

    Most of what a generator makes is easy. A difficulty encoder that sees it as it comes learns little of the rest of
    [0, 1].

    Args:
        difficulties: float [N] in [0, 1].
        number: of draws, with replacement.
        rng: NumPy's generator.
        bins: parts of [0, 1]; each that holds an image is drawn from equally often.

    Returns:
        Indices, int [number].
    """
    places = np.minimum((difficulties * bins).astype(int), bins - 1)
    probabilities = 1.0 / np.bincount(places, minlength=bins)[places]
    return rng.choice(len(difficulties), number, p=probabilities / probabilities.sum())
