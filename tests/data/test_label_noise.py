import numpy as np

from utilgen_jax.data.label_noise import add_label_noise


def test_labels_are_redrawn_from_all_classes():
    labels = np.repeat(np.arange(4), 10_000)
    noisy = add_label_noise(labels, 4, 0.4, seed=0)
    assert noisy.dtype == np.int32
    # Meta-Weight-Net's matrix: 0.4 / 4 everywhere, and 0.6 more on the diagonal. 0.02 is four deviations.
    transitions = np.stack([np.bincount(noisy[labels == k], minlength=4) / 10_000 for k in range(4)])
    np.testing.assert_allclose(transitions, 0.1 + 0.6 * np.eye(4), atol=0.02)


def test_the_seed_decides_and_no_noise_is_none():
    labels = np.arange(50) % 5
    np.testing.assert_array_equal(add_label_noise(labels, 5, 0.0, seed=0), labels)
    np.testing.assert_array_equal(add_label_noise(labels, 5, 0.5, seed=1), add_label_noise(labels, 5, 0.5, seed=1))
    assert (add_label_noise(labels, 5, 0.5, seed=1) != add_label_noise(labels, 5, 0.5, seed=2)).any()
