"""Long-tailed subsets of balanced data sets (Cui et al. 2019, arXiv 1901.05555)."""

import numpy as np

from utilgen_jax.errors import InputError


def long_tail_counts(largest: int, num_classes: int, factor: float) -> np.ndarray:
    """Returns the number of images of each class: n_k = max(floor(largest · factor^(-k / (K - 1))), 1).

    >>> long_tail_counts(100, 3, 100.0)
    array([100,  10,   1])

    Args:
        largest: number of images of the first class, at least 1.
        num_classes: K, at least 2.
        factor: imbalance factor, at least 1: the ratio of the first class's images to the last class's.

    Returns:
        int64 [K], descending.
    """
    exact = largest * factor ** (-np.arange(num_classes) / (num_classes - 1))
    # The margin keeps quotients such as 9.999999, rounded from 10, at 10.
    return np.maximum(np.floor(exact * (1 + 1e-9)), 1).astype(np.int64)


def long_tail_indices(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Chooses images of each class; the images for a smaller count are a subset of those for a larger one.

    Args:
        labels: int [N] in 0..K-1.
        counts: number of images of each class, int [K].
        seed: random seed of the choice.

    Returns:
        Indices int64 [sum of counts], class by class.

    Raises:
        InputError: a class has fewer images than requested.
    """
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise InputError(
                f"long tail: class {label} has {len(members)} images, {count} are requested; lower the number"
            )
        chosen.append(np.random.default_rng((seed, label)).permutation(members)[:count])
    return np.concatenate(chosen)


def fill_counts(counts: np.ndarray, goal: int) -> np.ndarray:
    """Returns how many images each class lacks to `goal`, int64 [K], from its counts, int [K]."""
    return np.maximum(goal - np.asarray(counts, np.int64), 0)
