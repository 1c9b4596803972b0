"""The classifier's losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax


def smoothed_cross_entropy(
    logits: jax.Array | np.ndarray, targets: jax.Array | np.ndarray, label_smoothing: float
) -> jax.Array:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: float [B, K].
        targets: float [B, K]; rows may have any sum, by which the loss is scaled.
        label_smoothing: share of the target that is spread over all classes.

    Returns:
        Float32 [B].
    """
    uniform = (label_smoothing / targets.shape[-1]) * jnp.sum(targets, axis=-1, keepdims=True)
    smoothed = (1.0 - label_smoothing) * targets + uniform
    return optax.softmax_cross_entropy(logits, smoothed)


def balance_logits(logits: jax.Array, class_counts: jax.Array) -> jax.Array:
    """Logits of p_k ∝ n_k exp(z_k), for training on rare and common classes; at test time z itself is used.

    Balanced softmax (Ren et al. 2020, arXiv 2007.10740, eq. 3).

    Args:
        logits: z, float [B, K].
        class_counts: n, float [K]: the number of *real* training images of each class. None counts as one: a fold may
            lack a rare class that synthetic images show.
    """
    return logits + jnp.log(jnp.maximum(class_counts, 1).astype(logits.dtype))
