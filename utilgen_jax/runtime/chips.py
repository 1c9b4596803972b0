"""TPU chips and the topologies that they are rented in; the speed of GPUs."""

import dataclasses
from collections.abc import Mapping

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, which JAX sees as one device.

    Attributes:
        memory: GiB that XLA gives to a program; it keeps a little of the chip's for itself.
        flops: dense bfloat16 operations a second at its peak, of its data sheet; float32 products run at it too, as JAX
            computes them in bfloat16 by default.
        cores: libtpu's name for what is one device; 'megacore' where the chip's two cores act as one.
        layouts: the topologies that it is rented in.
        bandwidth: bytes a second of its memory.
        dollars: an hour, on demand; spot costs a third to a half.
    """

    memory: float
    flops: float
    cores: str
    layouts: tuple[str, ...]
    bandwidth: float
    dollars: float


# Memory as libtpu states it when a program does not fit; the rest from cloud.google.com/tpu/docs, dollars from its list
# of prices for the USA in 2025: they change, see cloud.google.com/tpu/pricing.
CHIPS = {
    "v4": Chip(memory=30.75, flops=275e12, cores="megacore", layouts=_CUBES, bandwidth=1228e9, dollars=3.22),
    "v5e": Chip(memory=15.75, flops=197e12, cores="default", layouts=_SQUARES, bandwidth=819e9, dollars=1.20),
    "v5p": Chip(memory=95.73, flops=459e12, cores="megacore", layouts=_CUBES, bandwidth=2765e9, dollars=4.20),
    "v6e": Chip(memory=31.24, flops=918e12, cores="default", layouts=_SQUARES, bandwidth=1640e9, dollars=2.70),
}
TOPOLOGIES = tuple(f"{name}:{layout}" for name, chip in CHIPS.items() for layout in chip.layouts)

# Dense 10^12 operations a second, from NVIDIA's data sheets (which print twice as much, with sparsity), by the name
# that JAX's `device_kind` holds; the first row that fits counts. float32 is what its matrix products run at by JAX's
# default precision: TF32 where the chip has it. What a row lacks has no unit on that chip.
GPUS: Mapping[str, Mapping[str, float]] = {
    "H200": {"bfloat16": 989.4, "float16": 989.4, "float32": 494.7},
    "H100 PCIe": {"bfloat16": 756.0, "float16": 756.0, "float32": 378.0},
    "H100 NVL": {"bfloat16": 835.0, "float16": 835.0, "float32": 417.5},
    "H100": {"bfloat16": 989.4, "float16": 989.4, "float32": 494.7},
    "A100": {"bfloat16": 312.0, "float16": 312.0, "float32": 156.0},
    "L40S": {"bfloat16": 362.0, "float16": 362.0, "float32": 183.0},
    "L4": {"bfloat16": 121.0, "float16": 121.0, "float32": 60.0},
    "T4": {"float16": 65.0, "float32": 8.1},
}

# Dollars an hour of one, on demand in a machine of eight, in 2025; GPU clouds ask from a third to the whole of it.
GPU_DOLLARS: Mapping[str, float] = {"A100": 3.67, "H100": 11.06}
