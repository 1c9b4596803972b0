"""Artificial label noise."""

import numpy as np


def add_label_noise(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Adds uniform label noise: redraws each label from all classes with probability `share`.

    A redrawn label can be right, as in Meta-Weight-Net's public code (Shu et al. 2019), so that the expected fraction
    of wrong labels is share · (K - 1) / K: 36 % for ten classes and share 0.4.

    Args:
        labels: right labels, int [N] in 0..K-1.
        num_classes: K.
        share: probability in [0, 1].
        seed: random seed.

    Returns:
        int32 [N], in 0..K-1.
    """
    rng = np.random.default_rng(seed)
    is_drawn = rng.random(len(labels)) < share
    drawn = rng.integers(num_classes, size=len(labels))
    return np.where(is_drawn, drawn, labels).astype(np.int32)
