"""The config section `parallel`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The mesh of devices."""

    data: int = setting(-1, "devices that share a batch; -1: all that are left", minimum=-1, may_change=True)
    fsdp: int = setting(1, "devices that share the parameters; -1: all that are left", minimum=-1, may_change=True)
