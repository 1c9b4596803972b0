import jax.numpy as jnp
import numpy as np
import pytest
import torch

from utilgen_jax.classifier.losses import balance_logits, smoothed_cross_entropy


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2, 0.9])
def test_smoothed_cross_entropy_is_torchs(label_smoothing):
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.normal(size=(20, 7)).astype(np.float32), rng.integers(7, size=20)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none", label_smoothing=label_smoothing
    )
    found = smoothed_cross_entropy(logits, np.eye(7)[labels], label_smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_smoothing_leaves_the_weight_of_a_target():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 4)).astype(np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    weights = np.array([0.0, 0.5, 1.0, 2.0, 3.0], np.float32)
    losses = smoothed_cross_entropy(logits, targets, 0.2)
    np.testing.assert_allclose(
        smoothed_cross_entropy(logits, weights[:, None] * targets, 0.2), weights * losses, rtol=1e-5
    )


def test_balanced_softmax_is_the_cross_entropy_of_counted_probabilities():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels, counts = np.array([0, 1, 2, 2, 0]), np.array([20.0, 4.0, 1.0], np.float32)
    counted = counts * np.exp(logits)
    expected = -np.log(counted / counted.sum(axis=1, keepdims=True))[np.arange(5), labels]
    found = smoothed_cross_entropy(balance_logits(jnp.asarray(logits), jnp.asarray(counts)), np.eye(3)[labels], 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_class_without_real_images_counts_as_one():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    found, expected = (balance_logits(logits, jnp.array([20.0, 4.0, last])) for last in (0.0, 1.0))
    np.testing.assert_array_equal(found, expected)
