import numpy as np
import torch
from scipy.special import softmax

from utilgen_jax.valuation.difficulty import balanced_resample, difficulty


def draw(scale=3.0):
    rng = np.random.default_rng(0)
    return scale * rng.normal(size=(50, 7)).astype(np.float32), rng.integers(7, size=50)


def test_difficulty_against_torch():
    logits, labels = draw()
    expected = 1 - torch.softmax(torch.tensor(logits), -1)[torch.arange(50), torch.tensor(labels)]
    found = difficulty(logits, labels)
    assert found.shape == (50,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_difficulty_is_what_the_other_classes_have():
    logits, labels = draw(scale=1.0)
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    probabilities[np.arange(50), labels] = 0
    np.testing.assert_allclose(difficulty(logits, labels), probabilities.sum(-1), atol=1e-6)


def test_extreme_logits_stay_in_the_unit_interval():
    logits = np.array([[1e4, 0.0], [1e4, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(difficulty(logits, np.array([0, 1, 0])), [0, 1, 0.5])


def test_easy_and_hard_images_are_drawn_equally_often():
    rng = np.random.default_rng(0)
    difficulties = np.concatenate([rng.uniform(0.1, 0.2, 900), rng.uniform(0.8, 0.9, 60), np.full(40, 1.0)])
    chosen = balanced_resample(difficulties, 30_000, np.random.default_rng(1))
    shares = np.histogram(difficulties[chosen], [0, 0.5, 0.95, 1])[0] / 30_000
    np.testing.assert_allclose(shares, np.full(3, 1 / 3), atol=0.02)
    # Within a part all are as likely.
    counts = np.bincount(chosen[difficulties[chosen] == 1.0], minlength=1000)[-40:]
    assert counts.min() > 150 and counts.max() < 350
