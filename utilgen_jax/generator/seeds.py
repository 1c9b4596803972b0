"""PRNG keys of images: all that is random in an image follows from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

LAST_SEED = 2**64 - 1


def seed_keys(seeds: Sequence[int] | np.ndarray) -> jax.Array:
    """PRNG keys [B] of seeds int [B], 0 .. 2**64 - 1; those of `jax.random.key`, which knows seeds below 2**31."""
    numbers = np.asarray(seeds, np.uint64)
    words = np.stack([numbers >> np.uint64(32), numbers & np.uint64(2**32 - 1)], axis=-1)
    return jax.random.wrap_key_data(jnp.asarray(words.astype(np.uint32)))


@partial(jax.jit, static_argnums=1)
def folded_keys(keys: jax.Array, use: int) -> jax.Array:
    """Keys [B] of one use of randomness, whose number is folded into each image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)


@partial(jax.jit, static_argnums=1)
def normal_of_keys(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal, float32 [B, *shape], each row from its own key of [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
