"""Which class an image shows, from what classifiers say of it and from the label under which it came.

To classifiers of a few shots generated images are strange: they prefer some classes and shun others. Two things that a
pool says of itself put that right, whichever of its labels are:

- how many images of each class there are, see `match_prior`;
- which classes the images of a label show, see `class_posterior`.
"""

from __future__ import annotations

import numpy as np
from flax import struct
from scipy.special import log_softmax, softmax

_FLOOR = 0.02  # share of a label's images that any class may have, so that no class is ruled out
_SMALLEST = 1e-9  # probability


@struct.dataclass
class ClassPosterior:
    """What N images show.

    Attributes:
        probabilities: of each class, float32 [N, K].
        transition: T, the classes [K] that the images of each label show, float32 [K, K]; rows sum to 1. The identity
            where all labels are right.
    """

    probabilities: np.ndarray
    transition: np.ndarray


def match_prior(probabilities: np.ndarray, prior: np.ndarray, iterations: int = 50) -> np.ndarray:
    """Corrects predictions for a shift of their classes' frequencies: p'_k ∝ p_k b_k, with b such that mean p' = prior.

    As for a label shift that is known (Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori
    probabilities"), but the shift is the classifier's own.

    Args:
        probabilities: float [N, K], rows sum to 1.
        prior: the frequencies [K] of the classes; a class of frequency 0 gets no probability.
        iterations: of proportional fitting.

    Returns:
        Float64 [N, K].
    """
    prior = np.asarray(prior, np.float64)
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST)) + np.where(prior > 0, 0.0, -np.inf)
    present = prior > 0
    bias = np.zeros_like(prior)
    for _ in range(iterations):
        mean = softmax(logits + bias, axis=-1).mean(0)
        bias[present] += np.log(prior[present] / mean[present])
    return softmax(logits + bias, axis=-1)


def class_posterior(probabilities: np.ndarray, labels: np.ndarray, iterations: int = 5) -> ClassPosterior:
    """Finds which classes the images of each label show, and with it what each image shows.

    Expectation maximisation of a noise transition (Dawid and Skene 1979; Patrini et al. 2017, arXiv 1609.03683): the
    mean prediction of the images of label l is row T_l, and an image of that label shows class k with probability
    ∝ p_k T_lk. The classes are taken to be as frequent among the images as among the labels, see `match_prior`: without
    that, expectation maximisation follows the classifiers' preferences. Few iterations: more of them sharpen T beyond
    what predictions of a few shots bear (measured: README.md in this folder).

    Args:
        probabilities: predictions of classifiers that were not trained on these labels, float [N, K]; rows sum to 1.
        labels: that the images came with, int [N].
        iterations: 0 gives the predictions after `match_prior`, and T by them.
    """
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    prior = counts / counts.sum()
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST))
    found = match_prior(probabilities, prior)
    transition = _transition(found, labels)
    for _ in range(iterations):
        found = match_prior(np.exp(log_softmax(logits + np.log(transition + _FLOOR)[labels], axis=-1)), prior)
        transition = _transition(found, labels)
    return ClassPosterior(found.astype(np.float32), transition.astype(np.float32))


def _transition(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean prediction of each label's images [K, K]; the identity's row for a label without images."""
    num_classes = probabilities.shape[1]
    sums = np.zeros((num_classes, num_classes))
    np.add.at(sums, labels, probabilities)
    counts = np.bincount(labels, minlength=num_classes)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.eye(num_classes))
