"""What a compiled program costs, as XLA says; `planning.flops` counts what it computes."""

from __future__ import annotations

import jax


def compiled_flops(compiled: jax.stages.Compiled) -> float | None:
    """XLA's count of a program's operations; None where the backend gives none.

    Unlike `count_flops` it takes in additions, comparisons and the like, leaves out the taps of a convolution that fall
    on its padding, counts the body of a loop once, and sees nothing of kernels that XLA did not write.
    """
    analysis = compiled.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Memory that a program needs: arguments, results that do not take their place, temporaries; None if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
