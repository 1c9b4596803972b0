"""The learning rate's way through a training, the same for whatever is trained."""

import optax


def warmup_cosine(peak: float, steps: int) -> optax.Schedule:
    """From zero to the peak in the first 5 % of the steps, one at least; then a cosine decay to zero at the last.

    Args:
        peak: the largest rate.
        steps: optimiser steps of the whole training.
    """
    warmup = max(steps // 20, 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))
