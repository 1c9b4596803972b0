"""Probabilities that are as sure as they are right."""

import numpy as np
import pytest
from scipy.special import softmax

from utilgen_jax.valuation.calibration import temperature_scale


@pytest.mark.parametrize("modesty", [0.5, 1.0, 4.0])
def test_probabilities_that_are_too_modest_or_too_sure_become_those_by_which_the_labels_were_drawn(modesty):
    rng = np.random.default_rng(0)
    true = softmax(2 * rng.normal(size=(20_000, 4)), axis=-1)
    labels = np.array([rng.choice(4, p=row) for row in true])
    predicted = softmax(np.log(true) / modesty, axis=-1)
    calibrated = temperature_scale(predicted, labels)
    np.testing.assert_allclose(calibrated, true, atol=0.02)
    assert calibrated.dtype == np.float32


def test_what_is_always_right_becomes_nearly_sure_and_what_never_is_nearly_even():
    predicted = np.array([[0.8, 0.2], [0.3, 0.7], [0.0, 1.0]])
    right = temperature_scale(predicted, np.array([0, 1, 1]))
    assert (right.max(-1) > 0.999).all() and (right.argmax(-1) == [0, 1, 1]).all()
    wrong = temperature_scale(predicted[:2], np.array([1, 0]))
    np.testing.assert_allclose(wrong, 0.5, atol=0.05)
