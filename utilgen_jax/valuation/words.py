"""Which of a class's several words a generator understands as the class, by what classifiers of the shots alone say."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.types import Array, OnStep


def predict_by_shots(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    images: Array,
    keys: Sequence[jax.Array] | jax.Array,
    on_step: OnStep,
) -> np.ndarray:
    """Predicts the classes of images by an ensemble that was trained on the shots alone.

    Args:
        classifier: the network of every member.
        config: its training.
        real: the shots.
        images: as the classifier sees them, float32 [N, H, W, C].
        keys: PRNG keys of the members.
        on_step: called after each step with (steps done by all members, loss on the device).

    Returns:
        The mean of the members' probabilities, float32 [N, K].
    """
    predicted = np.zeros((len(images), real.num_classes), np.float32)
    for member, key in enumerate(keys):

        def on_member_step(step: int, loss: jax.Array, done: int = member * config.steps) -> None:
            on_step(done + step, loss)

        params = train_classifier(classifier, config, real, None, key, on_member_step)
        logits = predict_logits(classifier, params, images, config.eval_batch_size)
        predicted += softmax(logits, axis=-1) / len(keys)
    return predicted


def choose_words(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chooses words of each class: probabilities in proportion to what their values are above the worst of the class.

    A class's worst word is thus left out, and of two the better one is taken. Where all are equal, all are.

    Args:
        values: of all words, float [P].
        labels: the class of each, int [P].

    Returns:
        Float64 [P]; those of a class sum to 1.
    """
    probabilities = np.zeros(len(values))
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        above = values[places] - values[places].min()
        probabilities[places] = above / above.sum() if above.sum() > 0 else 1 / len(places)
    return probabilities
