"""Balanced softmax (Ren et al. 2020, arXiv 2007.10740): training on rare and common classes, tested on all alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax


def class_log_counts(labels: np.ndarray, num_classes: int) -> jax.Array:
    """log n_k of the training pictures, float32 [K], of labels int [N]; ValueError where a class has none."""
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class {int(np.flatnonzero(counts == 0)[0])} has no training picture, so no log of a count")
    return jnp.log(jnp.asarray(counts, jnp.float32))


def balanced_softmax_cross_entropy(logits: jax.Array, targets: jax.Array, log_counts: jax.Array) -> jax.Array:
    """The cross-entropy under p_k proportional to n_k exp(z_k); in testing, the plain logits z are used.

    Args:
      logits: z, float [B, K].
      targets: distributions, float [B, K].
      log_counts: log n_k of the *real* training pictures, float [K], see `class_log_counts`.

    Returns:
      Float [B].
    """
    return optax.softmax_cross_entropy(logits + log_counts, targets)
