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
