"""Loops on the device: over the steps of a training, and over the parts of a batch.

On CPU, XLA computes the gradient of a convolution's weights some fifty times slower inside a loop (`lax.scan`,
`while_loop`) than outside: 20 steps of a 3×3 convolution of 64 channels on 8×8 pixels, batch 128, take 14.4 s in a scan
and 0.28 s as a Python loop over the jitted step. Training loops therefore call one jitted step at a time, and
`remat_steps` writes its steps one after the other on CPU. Forward convolutions in a loop are not affected.

Such a loop must not run far ahead of the devices. Where one CPU is several of them, 32 programs may wait for a
device. The launch of one more blocks a thread that an earlier program needs, and a collective waits for ever. (JAX
0.10: 3,000 steps of two programs on eight devices stop within the first 200; where each waits for the step before the
last, a step takes 7 ms.) `training_loop` waits in every training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.types import PyTree

Carry = Any


def remat_steps(
    step: Callable[[Carry, PyTree], tuple[Carry, PyTree]], carry: Carry, inputs: PyTree, loop: bool | None = None
) -> tuple[Carry, PyTree]:
    """`jax.lax.scan` over rematerialised steps: a backward pass keeps only the carry between them.

    Args:
        step: (carry, one step's inputs) -> (carry, one step's outputs).
        carry: before the first step.
        inputs: every leaf [K, ...].
        loop: compile one step and loop over it, as a scan does; False writes the K steps one after the other; None
            decides by the platform.

    Returns:
        The last carry, and the outputs, every leaf [K, ...].
    """
    step = jax.checkpoint(step)
    if loop is None:
        loop = jax.default_backend() != "cpu"
    if loop:
        return jax.lax.scan(step, carry, inputs)
    outputs = []
    for index in range(jax.tree.leaves(inputs)[0].shape[0]):
        carry, output = step(carry, jax.tree.map(lambda leaf, index=index: leaf[index], inputs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def num_parts(number: int, most: int) -> int:
    """Into how many equal parts to divide so many, so that a part has at most `most` of them; 0: all."""
    if not most:
        return 1
    return next(parts for parts in range(-(-number // most), number + 1) if number % parts == 0)


def map_in_parts(function: Callable[[PyTree], PyTree], batch: PyTree, most: int) -> PyTree:
    """Applies a function to equal parts of a batch, one after the other, which takes less memory.

    A backward pass computes each part again. A part takes from all over the batch, which is split over the devices.

    Args:
        function: part of the batch -> outputs, every leaf with the part's images first.
        batch: every leaf [B, ...].
        most: images of a part, see `num_parts`; static.

    Returns:
        The outputs of the whole batch, in its order.
    """
    parts = num_parts(jax.tree.leaves(batch)[0].shape[0], most)
    if parts == 1:
        return function(batch)
    in_parts = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    outputs = jax.lax.map(jax.checkpoint(function), in_parts)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), outputs)
