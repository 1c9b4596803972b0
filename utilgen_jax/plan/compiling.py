"""Compiles a traced program for TPU chips and says what it needs there."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from utilgen_jax.plan.hlo_counts import HloCounts, count_hlo
from utilgen_jax.runtime.flops import count_bytes, count_flops

GIB = 2**30
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# What XLA says of a program that is too large: '... (320.00G) exceeds available HBM (30.75G)'. It speaks of temporaries
# and means all that the program needs, arguments and results too.
_TOO_LARGE = re.compile(r"\(([\d.]+)([BKMGT])\) exceeds available HBM")

# With next to no memory XLA does what it can to save some, says how much is needed all the same, and gives up. What it
# comes to is not always the least: the gradient of Stable Diffusion's decoder, of four images of 512 pixels, took
# 19.7 GiB with a limit of 1 MiB and 11.6 with one of 7.8 GiB.
_NO_MEMORY = 1


@dataclasses.dataclass(frozen=True)
class Call:
    """A jitted function and what it is called with.

    Attributes:
        function: the result of `jax.jit`.
        arguments: pytrees of sharded `jax.ShapeDtypeStruct`, and static arguments.
        settings: the same, by name.
    """

    function: Any
    arguments: tuple[Any, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one program needs; bytes are those on one chip.

    Attributes:
        argument_bytes: its arguments: weights, batch, optimiser state.
        temporary_bytes: all else while it runs, such as activations and those results that do not replace arguments.
        code_bytes: the program itself; 0 where none was generated: it does not fit, or only the memory was requested.
        resident_bytes: weights of the generator's other components, which lie beside it.
        needed_bytes: the sum.
        flops: of all chips together, see `runtime.flops.count_flops`.
        moved_bytes: that one chip's products read and write, about, see `runtime.flops.count_bytes`.
        compile_seconds: on this machine.
        hlo: what stands in the program of one chip; None where it was not compiled to the end.
    """

    argument_bytes: int
    temporary_bytes: int
    code_bytes: int
    resident_bytes: int
    needed_bytes: int
    flops: int
    moved_bytes: int
    compile_seconds: float
    hlo: HloCounts | None = None


def compile_program(call: Call, resident_bytes: int, available_bytes: int, full: bool = False) -> Figures:
    """Compiles a program, which can take minutes, and reads off what it needs.

    Args:
        call: the program and the shapes of its arguments; their shardings say for which chips it is compiled.
        resident_bytes: what else lies in a chip's memory.
        available_bytes: of a chip. A program that seems not to fit is compiled again, to half of them.
        full: generate code too, which is most of the time; otherwise stop where the least memory is known.
    """
    start = time.perf_counter()
    traced = call.function.trace(*call.arguments, **call.settings)
    lowered = traced.lower()
    memory, compiled = _compile(call, lowered, None if full else _NO_MEMORY)
    if not full and sum(memory) + resident_bytes > available_bytes:
        memory = min(memory, _compile(call, lowered, available_bytes // 2**21)[0], key=sum)
    argument_bytes, temporary_bytes, code_bytes = memory
    text = compiled.as_text() if full and compiled is not None else None
    return Figures(
        argument_bytes=argument_bytes,
        temporary_bytes=temporary_bytes,
        code_bytes=code_bytes,
        resident_bytes=resident_bytes,
        needed_bytes=sum(memory) + resident_bytes,
        flops=count_flops(traced.jaxpr),
        moved_bytes=count_bytes(traced.jaxpr, jax.sharding.get_mesh().size or 1),
        compile_seconds=time.perf_counter() - start,
        hlo=None if text is None else count_hlo(text),
    )


def _compile(call: Call, lowered: Any, limit: int | None) -> tuple[tuple[int, int, int], jax.stages.Compiled | None]:
    """Bytes of arguments, temporaries and code, and the program, if there is one.

    `limit` is the memory in MiB that XLA is told, None: the chip's own.
    """
    try:
        compiled = lowered.compile({} if limit is None else {"xla_tpu_max_hbm_size_mib": limit})
    except jax.errors.JaxRuntimeError as error:
        too_large = _TOO_LARGE.search(str(error))
        if too_large is None:
            raise
        argument_bytes = bytes_on_chip((call.arguments, call.settings))
        return (argument_bytes, int(float(too_large[1]) * _UNITS[too_large[2]]) - argument_bytes, 0), None
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes, memory.temp_size_in_bytes + results, memory.generated_code_size_in_bytes
    return needed, compiled


def bytes_on_chip(shapes: Any) -> int:
    """Bytes that the sharded `jax.ShapeDtypeStruct` of a pytree take on one chip; other leaves are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(shapes) if isinstance(leaf, jax.ShapeDtypeStruct)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
