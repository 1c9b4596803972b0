"""The learning rate's way through a training, the same for whatever is trained."""

import optax


def warmup_cosine(peak: float, steps: int, warmup: int = 0) -> optax.Schedule:
    """From zero to the peak; then a cosine decay to zero at the last step.

    Args:
        peak: the largest rate.
        steps: optimiser steps of the whole training.
        warmup: those up to the peak; 0: the first 5 %, one at least.
    """
    warmup = min(warmup, steps) or max(steps // 20, 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))
