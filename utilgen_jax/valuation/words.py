"""Which of a class's several words a generator understands as the class, by what `predict_by_ensemble` says of them."""

from __future__ import annotations

import numpy as np


def choose_words(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chooses words of each class: probabilities in proportion to what their values are above the worst of the class.

    A class's worst word is thus left out, and of two the better one is taken. Where all are equal, all are.

    Args:
        values: of all words, float [P].
        labels: the class of each, int [P].

    Returns:
        Float64 [P]; those of a class sum to 1.
    """
    probabilities = np.zeros(len(values))
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        above = values[places] - values[places].min()
        probabilities[places] = above / above.sum() if above.sum() > 0 else 1 / len(places)
    return probabilities
