"""Labelled examples, as everything that values or trains on them sees them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Examples:
    """A batch of B examples; every leaf is batch-first.

    Attributes:
        inputs: what the classifier takes: images float32 [B, H, W, C] in [-1, 1], or any pytree of [B, ...].
        targets: what it should say, float32 [B, K], each row a distribution: one-hot, smoothed, mixed or soft labels.
        is_weighted: bool [B], whether the weighting decides on the example (a synthetic or a doubtful one) or its
            weight stays 1 (a real one); None: it decides on all.
        difficulty: float32 [B] in [0, 1], asked for or measured; None where a weighting does not look at it.
        similarity: float32 [B], the cosine of image and prompt in CLIP's space; likewise.
        attributes: float32 [B, A], what was asked for in numbers, such as `PromptAttributes.one_hot`; likewise.
    """

    inputs: Any
    targets: jax.Array
    is_weighted: jax.Array | None = None
    difficulty: jax.Array | None = None
    similarity: jax.Array | None = None
    attributes: jax.Array | None = None

    @property
    def weighted(self) -> jax.Array:
        """`is_weighted`, all True where it is None: bool [..., B]."""
        if self.is_weighted is not None:
            return self.is_weighted
        return jnp.ones(self.targets.shape[:-1], bool)


def concatenate(first: Examples, second: Examples, axis: int = 0) -> Examples:
    """One batch after the other; a field that one of them leaves out is missing in the result too.

    Args:
        first: its `is_weighted` is made explicit, as is the other's.
        second: likewise.
        axis: of the examples; 1 where there is an axis of inner steps before it.
    """

    def join(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return None
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), one, other)

    return Examples(
        inputs=join(first.inputs, second.inputs),
        targets=join(first.targets, second.targets),
        is_weighted=join(first.weighted, second.weighted),
        difficulty=join(first.difficulty, second.difficulty),
        similarity=join(first.similarity, second.similarity),
        attributes=join(first.attributes, second.attributes),
    )
