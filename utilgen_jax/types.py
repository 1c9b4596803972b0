"""Names for types that many modules use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any  # nested containers of arrays
Params = Any  # a pytree of parameters, as flax.linen modules take it
Array = jax.Array | np.ndarray
OnStep = Callable[..., None]  # called after each training step with (steps done, loss on the device, **more scalars)


def counted_from(done: int, on_step: OnStep) -> OnStep:
    """Tells `on_step` of the steps of one training among several, after `done` steps of those before it."""
    return lambda step, *values, **scalars: on_step(done + step, *values, **scalars)
