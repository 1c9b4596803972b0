import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from utilgen_jax.balanced_softmax import balanced_softmax_cross_entropy, class_log_counts

LABELS = np.array([0] * 20 + [1] * 4 + [2] * 1)


def test_it_is_the_cross_entropy_of_the_counted_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 0])
    counted = np.array([20, 4, 1]) * np.exp(logits)
    wanted = -np.log(counted / counted.sum(axis=1, keepdims=True))[np.arange(5), labels]
    losses = balanced_softmax_cross_entropy(logits, jnp.eye(3)[labels], class_log_counts(LABELS, 3))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    oracle = torch.nn.functional.cross_entropy(
        torch.tensor(logits) + torch.log(torch.tensor([20.0, 4.0, 1.0])), torch.tensor(labels), reduction="none"
    )
    np.testing.assert_allclose(losses, oracle.numpy(), rtol=1e-5)


def test_equal_counts_change_nothing_and_soft_targets_are_mixed():
    logits = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    soft = np.random.default_rng(2).dirichlet(np.ones(3), size=4).astype(np.float32)
    plain = -(soft * jax.nn.log_softmax(logits)).sum(axis=1)
    even = class_log_counts(np.repeat([0, 1, 2], 7), 3)
    np.testing.assert_allclose(balanced_softmax_cross_entropy(logits, soft, even), plain, rtol=1e-5)


def test_pictures_that_say_nothing_teach_even_logits():
    """There balanced softmax is at its minimum, and plain softmax is not."""
    targets, even = jnp.eye(3)[LABELS], jnp.zeros((len(LABELS), 3))
    gradient = jax.grad(lambda logits, log_counts: balanced_softmax_cross_entropy(logits, targets, log_counts).mean())
    np.testing.assert_allclose(gradient(even, class_log_counts(LABELS, 3)).sum(axis=0), 0, atol=1e-6)
    assert abs(gradient(even, jnp.zeros(3)).sum(axis=0)).max() > 0.3


def test_a_class_without_pictures_is_named():
    with pytest.raises(ValueError, match="class 1 has no training picture"):
        class_log_counts(np.array([0, 2]), 3)
