"""How hard a picture is for a classifier (difficulty-controlled diffusion, arXiv 2411.18109)."""

import numpy as np
from scipy.special import softmax


def difficulty(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """s = 1 - softmax probability of the true class: float32 [N] in [0, 1], of logits [N, K] and labels int [N]."""
    return (1.0 - softmax(logits, axis=-1)[np.arange(len(labels)), labels]).astype(np.float32)
