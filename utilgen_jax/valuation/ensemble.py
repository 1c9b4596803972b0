"""Soft labels from ensembles: what classifiers say of images that they were not trained on.

An image that a generator made of a class may look like another class, or like two: a hard label would then teach the
wrong thing. Three ensembles know different things. The first is trained on the shots alone: it knows what the classes
are, but not how generated images look. The second is trained on the shots and the pool as it came: it knows generated
images, and believes their labels. The third is trained on the shots and the pool as the first one labels it. The soft
label is the mean of what the three say (measured, also in pairs: README.md in this folder).

Self-training (Lee 2013; noisy student, Xie et al. 2020, arXiv 1911.04252) out of fold: each classifier is trained on
one half of the pool and speaks of the other, so that no image is labelled by what was trained on it. The first
ensemble's labels are corrected for its own preferences, see `noise_transition`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, train_classifiers
from utilgen_jax.classifier.train import predict_logits
from utilgen_jax.runtime.sharding import replicate, to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Array, Params
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.noise_transition import ClassPosterior, class_posterior


@struct.dataclass
class EnsembleLabels:
    """What the ensembles say of N images, mean predictions float32 [N, K].

    Attributes:
        of_shots: of the classifiers of the shots alone.
        of_pool: of those of the shots and the other half of the pool as it came.
        of_relabelled: of those of the shots and the other half as the first ones label it.
        members_of_shots, members_of_pool, members_of_relabelled: these classifiers' parameters, stacked [M, ...].
    """

    of_shots: np.ndarray
    of_pool: np.ndarray
    of_relabelled: np.ndarray
    members_of_shots: Params
    members_of_pool: Params
    members_of_relabelled: Params

    @property
    def members(self) -> Params:
        """All classifiers, in this order."""
        kinds = self.members_of_shots, self.members_of_pool, self.members_of_relabelled
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kinds)

    @property
    def soft_labels(self) -> np.ndarray:
        """The mean of the three, float32 [N, K]."""
        return (self.of_shots + self.of_pool + self.of_relabelled) / 3

    def posterior(self, labels: np.ndarray) -> ClassPosterior:
        """Which class each image shows, by the third ensemble and the labels int [N] that the images came with."""
        return class_posterior(self.of_relabelled, labels)


def ensemble_labels(
    classifier: Classifier,
    config: ClassifierConfig,
    ensemble: EnsembleConfig,
    real: Examples,
    pool: Examples,
    key: jax.Array,
    loop: TrainingLoop,
) -> EnsembleLabels:
    """Trains the ensembles and labels the pool.

    The members train as the final classifier does, but for the mixing of their batches, which makes them less sure of
    themselves and of wrong labels (Zhang et al. 2018, arXiv 1710.09412). Each has its own initial weights and batches.

    Args:
        classifier: the network of every member.
        config: the final classifier's.
        ensemble: numbers of members, mixing.
        real: the shots.
        pool: the synthetic images, with the labels that they came with; the classes in turn.
        key: PRNG key.
        loop: runs the steps, a part of it those of each member.
    """
    config = dataclasses.replace(config, mixing=ensemble.mixing)
    members: list[Params] = []

    def train_members(name: str, others: Sequence[Examples | None]) -> list[Params]:
        done = len(members)
        trainings = [
            Training(real, images, jax.random.fold_in(key, done + number)) for number, images in enumerate(others)
        ]
        trained = train_classifiers(classifier, config, trainings, loop.part(name, done * config.steps))
        members.extend(trained)
        return trained

    def predict_halves(name: str, targets: np.ndarray) -> np.ndarray:
        """What members that were trained on the other half, under these targets [N, K], say of each image."""
        predicted = np.zeros((len(pool), pool.num_classes), np.float32)
        halves = [np.flatnonzero(half_of != number % 2) for number in range(2 * ensemble.pool_members)]
        trained = train_members(
            name, [dataclasses.replace(pool.take(half), targets=replicate(targets[half])) for half in halves]
        )
        for half, member in zip(halves, trained, strict=True):
            held_out = np.setdiff1d(np.arange(len(pool)), half)
            said = _predict(classifier, config, member, pool.take(held_out).inputs)
            predicted[held_out] += said / ensemble.pool_members
        return predicted

    # The pool holds the classes in turn: whole turns go to a half.
    half_of = np.arange(len(pool)) // pool.num_classes % 2
    trained = train_members("of_shots", [None] * ensemble.members)
    said = [_predict(classifier, config, member, pool.inputs) for member in trained]
    of_shots = np.mean(said, axis=0)
    of_pool = predict_halves("of_pool", to_host(pool.dense().targets))
    relabelled = class_posterior(of_shots, to_host(pool.labels)).probabilities
    of_relabelled = predict_halves("of_relabelled", relabelled)
    first, last = ensemble.members, ensemble.members + 2 * ensemble.pool_members
    kinds = (_stack(kind) for kind in (members[:first], members[first:last], members[last:]))
    return EnsembleLabels(of_shots, of_pool, of_relabelled, *kinds)


def predict_soft_labels(
    classifier: Classifier, config: ClassifierConfig, labels: EnsembleLabels, images: Array
) -> np.ndarray:
    """What trained ensembles say of other images than those that they were trained on.

    Args:
        classifier: the network of every member.
        config: as in `ensemble_labels`.
        labels: has the members.
        images: as the classifier sees them, float32 [N, H, W, C].

    Returns:
        The mean of the three ensembles, each the mean of its members' probabilities, float32 [N, K].
    """
    kinds = labels.members_of_shots, labels.members_of_pool, labels.members_of_relabelled
    return np.mean([_predict_mean(classifier, config, members, images) for members in kinds], axis=0)


def _predict_mean(classifier: Classifier, config: ClassifierConfig, members: Params, images: Array) -> np.ndarray:
    number = len(jax.tree.leaves(members)[0])
    each = [jax.tree.map(lambda leaf, member=member: leaf[member], members) for member in range(number)]
    return np.mean([_predict(classifier, config, params, images) for params in each], axis=0)


def _stack(members: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: np.stack([to_host(leaf) for leaf in leaves]), *members)


def predict_by_ensemble(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    images: Array,
    keys: Sequence[jax.Array] | jax.Array,
    loop: TrainingLoop,
) -> np.ndarray:
    """Predicts the classes of images by an ensemble that is trained on the shots alone.

    Args:
        classifier: the network of every member.
        config: its training.
        real: the shots.
        images: as the classifier sees them, float32 [N, H, W, C].
        keys: PRNG keys of the members.
        loop: runs the steps, a part of it those of each member.

    Returns:
        The mean of the members' probabilities, float32 [N, K].
    """
    members = train_classifiers(classifier, config, [Training(real, None, key) for key in keys], loop)
    return np.mean([_predict(classifier, config, member, images) for member in members], axis=0)


def _predict(classifier: Classifier, config: ClassifierConfig, params: Params, images: Array) -> np.ndarray:
    return softmax(predict_logits(classifier, params, images, config.eval_batch_size), axis=-1)


def ensemble_steps(config: ClassifierConfig, ensemble: EnsembleConfig) -> int:
    """Training steps of all members."""
    return (ensemble.members + 4 * ensemble.pool_members) * config.steps
