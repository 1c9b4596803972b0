"""Wrong labels on purpose, to see who notices."""

import numpy as np


def add_label_noise(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Uniform label noise: each label is, with probability `share`, drawn anew from all classes.

    The right class is among them, as in Meta-Weight-Net's public code (Shu et al. 2019), so that
    share · (K - 1) / K of the labels are wrong in the mean: 36 % of ten classes' at share 0.4.

    Args:
        labels: int [N] in 0..K-1, right.
        num_classes: K.
        share: in [0, 1].
        seed: of the draws.

    Returns:
        int32 [N], in 0..K-1.
    """
    rng = np.random.default_rng(seed)
    is_drawn = rng.random(len(labels)) < share
    drawn = rng.integers(num_classes, size=len(labels))
    return np.where(is_drawn, drawn, labels).astype(np.int32)
