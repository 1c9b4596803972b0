"""The most floating-point operations a second that a device can do."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from utilgen_jax.bench.timing import Work
from utilgen_jax.runtime.chips import CHIPS, GPUS

# JAX's name -> the chip; float32 products run as bfloat16 ones by JAX's default precision.
_TPUS = {"v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v5p": "v5p", "v6 lite": "v6e", "v6e": "v6e"}

_MATMUL_SIZE = 1024  # large enough for a processor's full speed, small enough for its emulated dtypes


@dataclasses.dataclass(frozen=True)
class Peak:
    """The peak of a device at a dtype.

    Attributes:
        flops_per_second: None where it is not known.
        source: 'data sheet', 'measured' or 'unknown'.
    """

    flops_per_second: float | None
    source: str

    def share(self, flops_per_second: float) -> float | None:
        """The part of the peak that was reached, in [0, 1]; None where the peak is not known."""
        return None if self.flops_per_second is None else flops_per_second / self.flops_per_second


def find_peak(dtype: str, matmuls: Sequence[Callable[[int], Work]]) -> Peak:
    """The peak of the device that JAX computes on: the data sheet's, or a processor's as `measured_peak` finds it."""
    device = jax.devices()[0]
    return measured_peak(matmuls) if device.platform == "cpu" else device_peak(device.device_kind, dtype)


def device_peak(device_kind: str, dtype: str) -> Peak:
    """The data sheet's peak.

    Args:
        device_kind: as `jax.Device.device_kind` says it.
        dtype: 'float32', 'bfloat16' or 'float16'.
    """
    if (chip := _TPUS.get(device_kind.removeprefix("TPU "))) and dtype != "float16":
        return Peak(CHIPS[chip].flops, "data sheet")
    for name, peaks in GPUS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return Peak(peaks[dtype] * 1e12, "data sheet") if dtype in peaks else Peak(None, "unknown")
    return Peak(None, "unknown")


def measured_peak(matmuls: Sequence[Callable[[int], Work]], repeats: int = 5) -> Peak:
    """The best that some implementations of a matrix product reach: for processors, whose sheets do not tell.

    Args:
        matmuls: each makes, for a size n, the product of two n×n matrices.
        repeats: runs of each; the fastest counts.
    """
    seconds = []
    for matmul in matmuls:
        work = matmul(_MATMUL_SIZE)
        work.run()
        seconds.append(min(work.run() for _ in range(repeats)))
    return Peak(2 * _MATMUL_SIZE**3 / min(seconds), "measured")


def jax_matmul(dtype: str, size: int) -> Work:
    """XLA's product of two matrices [size, size], for `measured_peak`."""
    matrix, product = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    return Work(lambda: product(matrix, matrix), jax.block_until_ready)
