"""What a compiled program costs, as XLA says."""

from __future__ import annotations

from typing import Any

import jax

from utilgen_jax.runtime.flops import count_flops


def compiled_flops(compiled: jax.stages.Compiled, traced: Any) -> float | None:
    """XLA's count of a program's operations, and what its loops repeat, as XLA counts the body of a loop once.

    Unlike `count_flops` it takes in additions, comparisons and the like, and leaves out the taps of a convolution that
    fall on its padding. It sees nothing of kernels that XLA did not write, such as a GPU's or TPU's fused attention.

    Args:
        compiled: the program.
        traced: what it was compiled from, by `jax.jit(f).trace(...)`.

    Returns:
        Operations of one call; None where the backend gives no count.
    """
    analysis = compiled.cost_analysis()
    if not analysis or "flops" not in analysis:
        return None
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    in_full, once = (count_flops(traced.jaxpr, platform, repeat_loops=repeat) for repeat in (True, False))
    return float(analysis["flops"]) + in_full - once


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Memory that a program needs: arguments, results that do not take their place, temporaries; None if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
