"""Prepares a traced program of ours for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from utilgen_jax.bench.costs import compiled_flops, peak_bytes
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.runtime.flops import count_flops


def prepare_compiled(trace: Callable[[], Any], call: Callable[[Any], Any]) -> Prepared:
    """Compiles a program and runs it once.

    Args:
        trace: traces it, as `jax.jit(f).trace` does.
        call: calls what is compiled, and returns what it computes.
    """
    begin = time.perf_counter()
    traced = trace()
    compiled = traced.lower().compile()
    jax.block_until_ready(call(compiled))
    return Prepared(
        work=Work(lambda: call(compiled), jax.block_until_ready),
        outputs={},
        first_seconds=time.perf_counter() - begin,
        flops=count_flops(traced.jaxpr),
        compiled_flops=compiled_flops(compiled, traced),
        peak_bytes=peak_bytes(compiled),
    )
