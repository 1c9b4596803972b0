import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import softmax

from tests import toy_images
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.ensemble import predict_by_ensemble
from utilgen_jax.valuation.words import choose_words

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=12)
CLASSIFIER = Classifier(TinyClassifier())


def test_predictions_are_the_mean_of_classifiers_of_the_shots():
    real, pool = draw_set(3, seed=0)[0], draw_set(8, seed=1)[0]
    keys = jax.random.split(jax.random.key(7), 2)
    parts = []
    for key in keys:
        params = train_classifier(CLASSIFIER, CONFIG, real, None, key, TrainingLoop())
        parts.append(softmax(predict_logits(CLASSIFIER, params, pool.inputs, 500), axis=-1))
    assert np.abs(parts[0] - parts[1]).max() > 0.01
    steps = []
    loop = TrainingLoop(lambda step, loss: steps.append(step))
    found = predict_by_ensemble(CLASSIFIER, CONFIG, real, pool.inputs, keys, loop)
    assert found.shape == (8 * NUM_CLASSES, NUM_CLASSES) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(parts, 0), atol=1e-6)
    assert steps == [*range(1, 25)]


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ([0.7, 0.4], [0, 0], [1, 0]),
        ([0.4, 0.7, 1.0], [0, 0, 1], [0, 1, 1]),
        # In proportion to what they are above the worst.
        ([0.5, 0.3, 0.1], [0, 0, 0], [2 / 3, 1 / 3, 0]),
        # Each class by itself.
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], [1, 0, 1, 0]),
        # No word is better.
        ([0.3, 0.3], [0, 0], [0.5, 0.5]),
    ],
)
def test_words_are_chosen_by_their_values(values, labels, expected):
    np.testing.assert_allclose(choose_words(np.array(values), np.array(labels)), expected)
