import numpy as np
import pytest
import scipy.stats

from utilgen_jax.experiment.values import weight_slope


def test_the_slope_of_the_curve_is_that_of_the_regression():
    rng = np.random.default_rng(0)
    losses = rng.gamma(2, 1, 200)
    weights = 1 / (1 + np.exp(losses - 2)) + 0.01 * rng.normal(size=200)
    expected = scipy.stats.linregress(losses, weights)
    slope, correlation = weight_slope(losses, weights)
    assert slope == pytest.approx(expected.slope, rel=1e-6)
    assert correlation == pytest.approx(expected.rvalue, rel=1e-6)


def test_a_flat_curve_has_no_slope():
    assert weight_slope(np.arange(5.0), np.full(5, 0.5)) == (0.0, 0.0)
    assert weight_slope(np.ones(5), np.arange(5.0)) == (0.0, 0.0)
