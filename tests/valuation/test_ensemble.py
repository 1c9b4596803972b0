import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import softmax

from tests import toy_images
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.valuation.calibration import temperature_scale
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.ensemble import ensemble_labels

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=12)
CLASSIFIER = Classifier(TinyClassifier())
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def toy():
    return draw_set(3, seed=0)[0], draw_set(8, seed=1, wrong=0.25)[0]


def label(toy, ensemble, config=CONFIG, on_step=lambda step, loss: None):
    return ensemble_labels(CLASSIFIER, config, ensemble, *toy, KEY, on_step)


def member_predictions(toy, members, mixing):
    """The softmax of classifiers that know nothing of each other, float32 [members, N, K]."""
    config = dataclasses.replace(CONFIG, mixing=mixing)
    predicted = []
    for member in range(members):
        key = jax.random.fold_in(KEY, member)
        params = train_classifier(CLASSIFIER, config, *toy, key, lambda step, loss: None)
        predicted.append(softmax(predict_logits(CLASSIFIER, params, toy[1].inputs, 500), axis=-1))
    return np.stack(predicted)


@pytest.mark.parametrize("mixing", ["mixup", "none"])
def test_labels_are_the_calibrated_mean_of_independently_trained_members(toy, mixing):
    predicted = member_predictions(toy, 2, mixing)
    assert np.abs(predicted[0] - predicted[1]).max() > 0.01
    expected = temperature_scale(predicted.mean(0), np.asarray(toy[1].labels))
    # The mixing is the ensemble's, not the final classifier's.
    config = dataclasses.replace(CONFIG, mixing="cutmix")
    found = label(toy, EnsembleConfig(members=2, mixing=mixing), config)
    assert found.shape == (8 * NUM_CLASSES, NUM_CLASSES) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - predicted.mean(0)).max() > 0.01
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_rest_of_a_label_is_the_one_it_came_with(toy, share):
    whole = label(toy, EnsembleConfig(members=1))
    found = label(toy, EnsembleConfig(members=1, share=share))
    np.testing.assert_allclose(found, share * whole + (1 - share) * np.asarray(toy[1].dense().targets), atol=1e-6)


def test_steps_are_counted_over_the_members(toy):
    seen = []
    label(toy, EnsembleConfig(members=2), dataclasses.replace(CONFIG, steps=3), lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 6]
