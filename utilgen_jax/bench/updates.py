"""Prepares a bilevel update for the clock, ours of `bench bilevel`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from utilgen_jax.bench.costs import compiled_flops, peak_bytes
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.bilevel import BilevelMetrics, BilevelState
from utilgen_jax.runtime.flops import count_flops


def prepare_update(
    update: Callable[..., tuple[BilevelState, BilevelMetrics]],
    state: BilevelState,
    arguments: tuple[Any, ...],
    outputs: Callable[[BilevelState, BilevelMetrics], dict[str, Any]] = lambda state, metrics: {},
) -> Prepared:
    """Compiles an update and runs it once.

    Args:
        update: (state, *arguments) -> (new state, metrics); not jitted.
        state: before the first step; each step takes over the memory of its own.
        arguments: the same for every step.
        outputs: (state, metrics) after the first step -> named arrays to compare with another side.
    """
    begin = time.perf_counter()
    traced = jax.jit(update, donate_argnums=0).trace(state, *arguments)
    compiled = traced.lower().compile()

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, *arguments)
        return state, metrics

    found = outputs(*jax.block_until_ready(step()))
    first_seconds = time.perf_counter() - begin
    # XLA computes once what the update asks for twice, such as the forward pass that the weighting looks at.
    operations = compiled_flops(compiled, traced)
    return Prepared(
        work=Work(step, jax.block_until_ready),
        outputs={name: np.asarray(output) for name, output in found.items()},
        first_seconds=first_seconds,
        flops=operations or count_flops(traced.jaxpr),
        compiled_flops=operations,
        peak_bytes=peak_bytes(compiled),
    )
