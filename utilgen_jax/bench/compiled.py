"""Prepares a program of ours for the clock."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from utilgen_jax.bench.costs import compiled_flops, peak_bytes
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.bilevel import BilevelMetrics, BilevelState
from utilgen_jax.runtime.flops import count_flops


def prepare_compiled(
    trace: Callable[[], Any],
    call: Callable[[Any], Any],
    outputs: Callable[[Any], Mapping[str, Any]] = lambda first: {},
) -> Prepared:
    """Compiles a program and runs it once.

    Args:
        trace: traces it, as `jax.jit(f).trace` does.
        call: calls what is compiled, and returns what it computes.
        outputs: what the first call has computed -> named arrays to compare with another side.
    """
    begin = time.perf_counter()
    traced = trace()
    compiled = traced.lower().compile()
    first = jax.block_until_ready(outputs(jax.block_until_ready(call(compiled))))
    first_seconds = time.perf_counter() - begin
    return Prepared(
        work=Work(lambda: call(compiled), jax.block_until_ready),
        outputs={name: np.asarray(output) for name, output in first.items()},
        first_seconds=first_seconds,
        flops=count_flops(traced.jaxpr),
        compiled_flops=compiled_flops(compiled, traced),
        peak_bytes=peak_bytes(compiled),
    )


def prepare_update(
    update: Callable[..., tuple[BilevelState, BilevelMetrics]],
    state: BilevelState,
    arguments: tuple[Any, ...],
    outputs: Callable[[BilevelState, BilevelMetrics], Mapping[str, Any]] = lambda state, metrics: {},
) -> Prepared:
    """Compiles a bilevel update and runs it once.

    Args:
        update: (state, *arguments) -> (new state, metrics); not jitted.
        state: before the first step; each step takes over the memory of its own.
        arguments: the same for every step.
        outputs: (state, metrics) after the first step -> named arrays to compare with another side.
    """

    def step(compiled: Any) -> tuple[BilevelState, BilevelMetrics]:
        nonlocal state
        state, metrics = compiled(state, *arguments)
        return state, metrics

    jitted = jax.jit(update, donate_argnums=0)
    prepared = prepare_compiled(lambda: jitted.trace(state, *arguments), step, lambda first: outputs(*first))
    # XLA computes once what the update asks for twice, such as the forward pass that the weighting looks at.
    return dataclasses.replace(prepared, flops=prepared.compiled_flops or prepared.flops)
