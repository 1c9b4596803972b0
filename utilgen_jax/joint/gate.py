"""Decides whether a trained adapter is used: only if its images teach a classifier more than plain ones do."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, train_classifiers
from utilgen_jax.classifier.train import logits_of_loss, predict_logits
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params
from utilgen_jax.valuation.cross_fit import PREDICTION_BATCH_SIZE, smoothed


@struct.dataclass
class Gate:
    """The verdict.

    Attributes:
        gains: by how much the loss on each held-out shot falls with the adapter's images, float32 [N].
    """

    gains: np.ndarray

    @property
    def mean(self) -> float:
        """The mean gain."""
        return float(np.mean(self.gains))

    @property
    def standard_error(self) -> float:
        """Of the mean, over the shots."""
        return float(np.std(self.gains, ddof=1) / np.sqrt(len(self.gains)))

    @property
    def is_open(self) -> bool:
        """Whether the adapter is used: its gain exceeds the standard error."""
        return self.mean > self.standard_error


def compare_pools(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    pools: tuple[Examples, Examples],
    folds: Sequence[Fold],
    key: jax.Array,
    loop: TrainingLoop,
) -> Gate:
    """Trains a classifier a fold on each of two pools, and compares their losses on the fold's own shots.

    The adapter was taught by the same shots, though never by a classifier that had learnt from them; so the gate is
    rather too willing to open.

    Args:
        classifier: the network.
        config: its training.
        real: the shots, N of them.
        pools: plain images, and the adapter's.
        folds: of the shots.
        key: PRNG key; both pools train from the same start.
        loop: runs the steps, a part of it those of each training.
    """
    trainings = [
        Training(real.take(fold.train_indices), pool, jax.random.fold_in(key, number))
        for number, fold in enumerate(folds)
        for pool in pools
    ]
    trained = iter(train_classifiers(classifier, config, trainings, loop))
    losses = np.zeros((2, len(real)), np.float32)
    for fold in folds:
        held_out = real.take(fold.validation_indices)
        class_counts = count_classes(real.take(fold.train_indices))
        for place in range(len(pools)):
            losses[place, fold.validation_indices] = _losses(classifier, config, class_counts, next(trained), held_out)
    return Gate(losses[0] - losses[1])


def _losses(
    classifier: Classifier, config: ClassifierConfig, class_counts: jax.Array, params: Params, held_out: Examples
) -> np.ndarray:
    logits = predict_logits(classifier, params, held_out.inputs, PREDICTION_BATCH_SIZE)
    targets = smoothed(config, held_out).targets
    seen = logits_of_loss(config, class_counts, jnp.asarray(logits, jnp.float32))
    return to_host(optax.softmax_cross_entropy(seen, targets))
