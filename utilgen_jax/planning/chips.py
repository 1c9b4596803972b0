"""TPU chips and the topologies that they are rented in."""

import dataclasses

from utilgen_jax.config import nearest

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, which JAX sees as one device.

    Attributes:
      memory: GiB that XLA gives to a program; it keeps a little of the chip's for itself.
      cores: libtpu's name for what is one device; 'megacore' where the chip's two cores act as one.
      layouts: the topologies that it is rented in.
    """

    memory: float
    flops: float
    bandwidth: float
    cores: str
    layouts: tuple[str, ...]


# Memory as libtpu states it when a program does not fit; layouts of cloud.google.com/tpu/docs, up to a few hosts.
CHIPS = {
    "v4": Chip(memory=30.75, cores="megacore", layouts=_CUBES),
    "v5e": Chip(memory=15.75, cores="default", layouts=_SQUARES),
    "v5p": Chip(memory=95.73, cores="megacore", layouts=_CUBES),
    "v6e": Chip(memory=31.24, cores="default", layouts=_SQUARES),
}
TOPOLOGIES = tuple(f"{name}:{layout}" for name, chip in CHIPS.items() for layout in chip.layouts)


def check_topology(topology: str) -> list[str]:
    """Says what is wrong with a topology's name: no message, or one with the nearest valid names."""
    if topology in TOPOLOGIES:
        return []
    chip = topology.partition(":")[0]
    candidates = [name for name in TOPOLOGIES if name.startswith(f"{chip}:")] if chip in CHIPS else TOPOLOGIES
    first = nearest(topology, candidates)
    return [f"--topology: {topology!r} is unknown; the nearest is {first!r}, all are {', '.join(TOPOLOGIES)}"]
