"""Data sets of a few common and many rare classes, made from balanced ones (Cui et al. 2019, arXiv 1901.05555)."""

import numpy as np

from utilgen_jax.errors import InputError


def long_tail_counts(largest: int, num_classes: int, factor: float) -> np.ndarray:
    """How many images of each class: n_k = largest · factor^(-k / (K - 1)), cut to a whole number, and 1 at least.

    >>> long_tail_counts(100, 3, 100.0)
    array([100,  10,   1])

    Args:
        largest: Images of the first class, 1 or more.
        num_classes: K, 2 or more.
        factor: The imbalance factor, 1 or more: the first class has so many times the images of the last.

    Returns:
        int64 [K], falling.
    """
    exact = largest * factor ** (-np.arange(num_classes) / (num_classes - 1))
    # A hair more than the quotient, so that 9.999999 of a float's rounding stays 10.
    return np.maximum(np.floor(exact * (1 + 1e-9)), 1).astype(np.int64)


def long_tail_indices(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Chooses so many images of each class; those of a smaller count are among those of a larger one.

    Args:
        labels: int [N] in 0..K-1.
        counts: int [K].
        seed: Chooses the images.

    Returns:
        int64 [sum of counts] into the labels, one class after the other.

    Raises:
        InputError: A class has fewer images than asked for.
    """
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise InputError(f"long tail: class {label} has {len(members)} images, not the {count} asked for; lower it")
        chosen.append(np.random.default_rng((seed, label)).permutation(members)[:count])
    return np.concatenate(chosen)


def fill_counts(counts: np.ndarray, goal: int) -> np.ndarray:
    """How many synthetic images bring each class to `goal` images: int64 [K] of int [K], 0 where it has as many."""
    return np.maximum(goal - np.asarray(counts, np.int64), 0)
