"""What stands in a program that XLA has compiled for a chip: kernels, copies, collectives, and the bytes they move.

XLA's own `cost_analysis()` counts what is read from the chip's fast memory too, and a loop's body once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", re.MULTILINE)
# '  %name = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} fusion(%operand, ...), kind=kLoop, ...'
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FAST_MEMORY = re.compile(r"S\([1-9]\)")  # a memory space other than the main one
_BITS = re.compile(r"\d+")

# Reads or writes the main memory once; the other side is in the fast one.
_PREFETCHES = ("copy-start", "slice-start")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# These say where something is, or end what has been counted at its start.
_FREE = (
    *("after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id", "tuple"),
    *("copy-done", "slice-done"),
    *(f"{name}-done" for name in _COLLECTIVES),
)
_GATHERS = ("gather", "scatter")
_PRODUCTS = ("convolution", "dot")


@dataclasses.dataclass(frozen=True)
class HloCounts:
    """Counts of one call on one chip; what a loop repeats counts as often as it runs, where XLA knows how often.

    Attributes:
        kernels: instructions that compute or copy.
        memory_bytes: that they read from the chip's main memory and write there.
        float32_bytes: of those written, the bytes of float32 arrays.
        float32_products: matrix products and convolutions that are given float32.
        copies: instructions that change an array's layout alone, in either memory.
        copied_bytes: of their results.
        gathers: gathers and scatters that stand alone.
        collectives: exchanges between chips.
        collective_bytes: of their results.
    """

    kernels: int = 0
    memory_bytes: int = 0
    float32_bytes: int = 0
    float32_products: int = 0
    copies: int = 0
    copied_bytes: int = 0
    gathers: int = 0
    collectives: int = 0
    collective_bytes: int = 0

    def plus(self, other: HloCounts, times: int = 1) -> HloCounts:
        """The sum with another's, counted so many times."""
        fields = [field.name for field in dataclasses.fields(self)]
        return HloCounts(**{name: getattr(self, name) + times * getattr(other, name) for name in fields})


class _Array(NamedTuple):
    dtype: str
    size: int  # bytes
    in_main_memory: bool


def count_hlo(text: str) -> HloCounts:
    """Counts what stands in a compiled program.

    Args:
        text: `jax.jit(f).lower(...).compile().as_text()`.
    """
    starts = [*_COMPUTATION.finditer(text)]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    bodies = {start[2]: text[start.end() : end] for start, end in zip(starts, ends, strict=True)}
    (entry,) = (start[2] for start in starts if start[1])
    return _count(entry, bodies)


def _count(name: str, bodies: dict[str, str]) -> HloCounts:
    counts = HloCounts()
    main_bytes: dict[str, int] = {}  # of each instruction's result
    for found in _INSTRUCTION.finditer(bodies[name]):
        result, shape, operation, rest = found.groups()
        arrays = [*_arrays(shape)]
        main_bytes[result] = sum(array.size for array in arrays if array.in_main_memory)
        if operation in ("while", "call", "conditional"):
            trips = _TRIPS.search(rest)
            for body in re.findall(r"(?:body|to_apply|computation)=%([\w.\-]+)", rest):
                counts = counts.plus(_count(body, bodies), int(trips[1]) if trips else 1)
        elif operation not in _FREE and 'custom_call_target="ConcatBitcast"' not in rest:
            read = sum(main_bytes.get(operand, 0) for operand in _operands(rest))
            counts = counts.plus(_of_instruction(operation, arrays, read, main_bytes[result]))
    return counts.plus(HloCounts(float32_products=_float32_products(name, bodies)))


def _float32_products(name: str, bodies: dict[str, str]) -> int:
    """Products of a computation and of what it fuses that are given float32."""
    instructions = _INSTRUCTION.findall(bodies[name])
    is_float32 = {result: shape.startswith("f32") for result, shape, _, _ in instructions}
    counts = 0
    for _, _, operation, rest in instructions:
        if operation in _PRODUCTS:
            counts += any(is_float32.get(operand, False) for operand in _operands(rest))
        elif operation == "fusion":
            counts += sum(_float32_products(fused, bodies) for fused in re.findall(r"calls=%([\w.\-]+)", rest))
    return counts


def _of_instruction(operation: str, arrays: list[_Array], read: int, written: int) -> HloCounts:
    size = sum(array.size for array in arrays)
    if operation in _PREFETCHES:
        # Its result is a tuple of both sides; a slice's is the smaller.
        sides = [array.size for array in arrays if array.size > 4]
        return HloCounts(memory_bytes=min(sides, default=0))
    is_copy = operation in ("copy", "transpose")
    is_collective = operation.removesuffix("-start") in _COLLECTIVES
    return HloCounts(
        kernels=1,
        memory_bytes=read + written,
        float32_bytes=sum(array.size for array in arrays if array.in_main_memory and array.dtype == "f32"),
        copies=int(is_copy),
        copied_bytes=size if is_copy else 0,
        gathers=int(operation in _GATHERS),
        collectives=int(is_collective),
        collective_bytes=size if is_collective else 0,
    )


def _operands(rest: str) -> list[str]:
    """Names of an instruction's operands, of the text after its opening bracket."""
    return re.findall(r"%([\w.\-]+)", rest.partition(")")[0])


def _arrays(shape: str) -> Iterator[_Array]:
    """The arrays of an instruction's result, which may be a tuple."""
    for dtype, sides, layout in _ARRAY.findall(shape):
        bits = _BITS.search(dtype)
        width = int(bits[0]) / 8 if bits else 1  # `pred` and the like take a byte
        size = math.ceil(width * math.prod(int(side) for side in sides.split(",") if side))
        yield _Array(dtype, size, not _FAST_MEMORY.search(layout))
