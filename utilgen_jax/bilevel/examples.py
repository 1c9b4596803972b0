"""Labelled examples: training sets, batches and validation sets, in one class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Examples:
    """B labelled examples; every leaf is batch-first. A field that is None is not known.

    Attributes:
        inputs: the classifier's input: images float32 [B, H, W, C] in [-1, 1], or any pytree of [B, ...]. Training sets
            may hold them as uint8, see `classifier.dataset.with_floats`.
        targets: float32 [B, K], each row a distribution: one-hot, smoothed, mixed or soft labels; or int32 [B], class
            labels, which take less memory, see `dense`.
        weights: float32 [B], mean 1: how much each example counts in a training set; None: all the same.
        is_weighted: bool [B], whether a weighting decides on the example (a synthetic or doubtful one) or its weight
            stays 1 (a real one); None: it decides on all.
        difficulty: float32 [B] in [0, 1], requested or measured.
        similarity: float32 [B], cosine of image and prompt in CLIP's space.
        attributes: float32 [B, A], of the prompt: `PromptAttributes.one_hot`, `ClassWords.one_hot` or both.
        num_classes: K, needed where the targets are class labels; static.
    """

    inputs: Any
    targets: jax.Array
    weights: jax.Array | None = None
    is_weighted: jax.Array | None = None
    difficulty: jax.Array | None = None
    similarity: jax.Array | None = None
    attributes: jax.Array | None = None
    num_classes: int = struct.field(pytree_node=False, default=0)

    def __len__(self) -> int:
        """B."""
        return self.targets.shape[0]

    @property
    def _has_labels(self) -> bool:
        """Whether the targets are class labels."""
        return jnp.issubdtype(self.targets.dtype, jnp.integer)

    @property
    def weighted(self) -> jax.Array:
        """`is_weighted`, all True where it is None: bool [..., B]."""
        if self.is_weighted is not None:
            return self.is_weighted
        return jnp.ones(self.targets.shape if self._has_labels else self.targets.shape[:-1], bool)

    @property
    def labels(self) -> jax.Array:
        """The class labels, or the most probable class of each target: int32 [B]."""
        if self._has_labels:
            return self.targets
        return jnp.argmax(self.targets, axis=-1).astype(jnp.int32)

    def dense(self) -> Examples:
        """The same examples with targets float32 [B, K]: one-hot where they are class labels."""
        if self._has_labels:
            return dataclasses.replace(self, targets=jax.nn.one_hot(self.targets, self.num_classes))
        return self

    def take(self, indices: jax.Array | np.ndarray) -> Examples:
        """Some of the examples, in the order of `indices` [n]."""
        return jax.tree.map(lambda leaf: leaf[indices], self)


def count_classes(examples: Examples) -> jax.Array:
    """How many examples there are of each class: float32 [K]; soft targets count in parts."""
    if examples._has_labels:
        return jnp.bincount(examples.targets, length=examples.num_classes).astype(jnp.float32)
    return examples.targets.sum(0)


def labelled(inputs: Any, labels: np.ndarray | jax.Array, num_classes: int) -> Examples:
    """Makes a training set of inputs [N, ...] and labels int [N], in [0, num_classes); all weights are 1."""
    return Examples(inputs, jnp.asarray(labels, jnp.int32), weights=jnp.ones(len(labels)), num_classes=num_classes)


def concatenate(first: Examples, second: Examples, axis: int = 0, fill: Sequence[str] = ()) -> Examples:
    """Joins two batches; a field that only one of them knows is dropped, unless `fill` names it.

    Args:
        first: `is_weighted` is made explicit in the result.
        second: the same.
        axis: of the examples; 1 where an axis of inner steps stands before it.
        fill: fields to fill with zeros where one batch lacks them, such as the attributes of real images.
    """
    if first.targets.dtype != second.targets.dtype:
        first, second = first.dense(), second.dense()

    def join(name: str) -> Any:
        parts = [getattr(part, name) for part in (first, second)]
        if name == "is_weighted":
            parts = [first.weighted, second.weighted]
        known = [part for part in parts if part is not None]
        if not known or (len(known) == 1 and name not in fill):
            return None
        if len(known) == 1:
            shapes = [(*part.weighted.shape, *known[0].shape[axis + 1 :]) for part in (first, second)]
            parts = [jnp.zeros(shape) if part is None else part for part, shape in zip(parts, shapes, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)

    names = [field.name for field in dataclasses.fields(Examples) if field.name != "num_classes"]
    return Examples(**{name: join(name) for name in names}, num_classes=first.num_classes)
