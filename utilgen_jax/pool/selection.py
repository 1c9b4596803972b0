"""Selects a part of a pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def select_top(labels: np.ndarray, scores: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Selects the images of each class with the highest scores.

    Args:
        labels: int [N], in [0, K).
        scores: float [N]; of equal ones the first counts as higher.
        counts: K, how many of each class; where a class has fewer, all of them.

    Returns:
        Sorted indices, int64 [n].
    """
    ranked = np.argsort(-scores, kind="stable")
    return np.sort(np.concatenate([ranked[labels[ranked] == label][:count] for label, count in enumerate(counts)]))
