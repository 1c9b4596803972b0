"""Norms of classifiers: group norm, or batch norm with frozen statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

STATISTICS = "batch_stats"
_EPSILON = 1e-5


class FrozenBatchNorm(nn.Module):
    """Batch norm with frozen statistics, which are variables of the collection `STATISTICS`.

    Statistics of the current batch would couple the images of a batch, and the passes of a bilevel step.

    Attributes:
        dtype: dtype of the result.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]: (x - running_mean) / sqrt(running_var + 1e-5) · scale + bias."""
        channels = inputs.shape[-1:]
        mean = self.variable(STATISTICS, "running_mean", jnp.zeros, channels).value
        variance = self.variable(STATISTICS, "running_var", jnp.ones, channels).value
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        factor = scale * jax.lax.rsqrt(variance + _EPSILON)
        return ((inputs - mean) * factor + bias).astype(self.dtype)


def _group_norm(dtype: Any, name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns a group norm with 32 groups (Wu and He 2018), or fewer for at least 8 channels per group."""

    def normalize(inputs: jax.Array) -> jax.Array:
        num_groups = max(min(32, inputs.shape[-1] // 8), 1)
        return nn.GroupNorm(num_groups, epsilon=_EPSILON, dtype=dtype, name=name)(inputs)

    return normalize


NORMS: Mapping[str, Callable[[Any, str], Callable[[jax.Array], jax.Array]]] = {
    "group": _group_norm,
    "batch": lambda dtype, name: FrozenBatchNorm(dtype, name=name),
}
