"""Calibration of predicted probabilities."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


def temperature_scale(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sharpens or softens probabilities, all by one temperature, to how often they are right.

    The temperature is the one under which the labels are the most likely (temperature scaling, Guo et al. 2017, arXiv
    1706.04599, section 4.2), between 1/20 and 20. The most probable class stays.

    Args:
        probabilities: float [N, K], rows sum to 1.
        labels: int [N].

    Returns:
        Float32 [N, K].
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))

    def negative_log_likelihood(log_temperature: float) -> float:
        predicted = log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -float(np.mean(predicted[np.arange(len(labels)), labels]))

    found = minimize_scalar(negative_log_likelihood, bounds=(-np.log(20), np.log(20)), method="bounded")
    return softmax(logits / np.exp(found.x), axis=-1).astype(np.float32)
