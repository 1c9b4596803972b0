"""Several steps in one program, so that a backward pass through them remembers only what is between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Carry = Any
PyTree = Any


def remat_steps(
    step: Callable[[Carry, PyTree], tuple[Carry, PyTree]], carry: Carry, inputs: PyTree, loop: bool | None = None
) -> tuple[Carry, PyTree]:
    """`jax.lax.scan` over rematerialised steps.

    Args:
        step: (carry, one step's inputs) -> (carry, one step's outputs).
        carry: before the first step.
        inputs: every leaf [K, ...].
        loop: compile one step and loop over it, as a scan does; else the K steps are written one after the other. None
            decides by the platform: XLA's CPU backend computes a convolution's weight gradient some fifty times slower
            inside a loop.

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
