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
    """

    memory: float
    flops: float
    cores: str
    layouts: tuple[str, ...]


# Memory as libtpu states it when a program does not fit; the rest from cloud.google.com/tpu/docs.
CHIPS = {
    "v4": Chip(memory=30.75, flops=275e12, cores="megacore", layouts=_CUBES),
    "v5e": Chip(memory=15.75, flops=197e12, cores="default", layouts=_SQUARES),
    "v5p": Chip(memory=95.73, flops=459e12, cores="megacore", layouts=_CUBES),
    "v6e": Chip(memory=31.24, flops=918e12, cores="default", layouts=_SQUARES),
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
