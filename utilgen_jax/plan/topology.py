"""The mesh of a TPU topology, on a machine that has none."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.chips import CHIPS
from utilgen_jax.runtime.sharding import make_mesh

# libtpu looks for the TPU of this machine as it is loaded, writes its log into /tmp and keeps other processes out;
# compiling for a TPU elsewhere needs none of it.
_LIBTPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def topology_mesh(topology: str, data: int, fsdp: int) -> Mesh:
    """The mesh of a topology's chips: programs can be compiled for it, not run.

    Args:
        topology: one of `TOPOLOGIES`.
        data: see `parallel.make_mesh`.
        fsdp: see `parallel.make_mesh`.

    Raises:
        InputError: libtpu is not installed, or the axes' sizes do not fit the number of chips.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("the compiler for TPUs, libtpu, is not installed: `pip install -e .[tpu]` does so (200 MB)")
    os.environ.update(_LIBTPU_ENVIRONMENT)
    kind, _, layout = topology.partition(":")
    settings: dict[str, Any] = {"chip_config_name": CHIPS[kind].cores}
    if layout == "1x1":
        settings["chips_per_host_bounds"] = (1, 1, 1)
    return make_mesh(data, fsdp, topologies.get_topology_desc(topology, "tpu", **settings).devices)
