"""What the benchmarks share: the machine, the measurement of one or two sides, and the table.

The sides are called 'ours' and 'torch' throughout; only the first is always there.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax

from utilgen_jax.bench.peaks import Peak
from utilgen_jax.bench.timing import Prepared, relative_errors, time_in_turns, times_as_long
from utilgen_jax.errors import InputError
from utilgen_jax.report.progress import Progress
from utilgen_jax.report.table import format_table

TORCH_PACKAGES = ("torch", "diffusers", "peft")


def check_torch() -> list[str]:
    """Lists what is missing for `--against=torch`, without importing it."""
    missing = [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]
    return [f"--against=torch: {', '.join(missing)} missing; pip install {' '.join(missing)}"] if missing else []


def check_batch_sizes(sizes: Sequence[str]) -> list[str]:
    """Lists what is wrong with the values of --batch_sizes."""
    return [
        f"--batch_sizes: expected whole numbers of at least 1, got {size!r}"
        for size in sizes
        if not size.isdecimal() or int(size) < 1
    ]


def torch_device() -> str:
    """The kind of device that both sides have, as JAX calls it; InputError where torch has none of that kind."""
    import torch

    kind = jax.default_backend()
    if kind not in ("cpu", "gpu"):
        raise InputError(f"--against=torch: torch does not run on this {kind}; time ours alone, --against=none")
    if kind == "gpu" and not torch.cuda.is_available():
        raise InputError("--against=torch: this torch does not see the GPU; install one with CUDA from pytorch.org")
    return kind


def describe_machine(with_torch: bool) -> dict[str, Any]:
    """The device, how busy the machine is, and the versions, JSON-ready; warns where others use the processor too."""
    device, load = jax.devices()[0], os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.platform == "cpu" and cores > 1 and load > 0.5:
        print(
            f"warning: this machine is busy (load average {load:.1f}), and threads that wait for each other distort "
            "the ratio; wait, or give both sides one core: taskset -c 0 python -m utilgen_jax.bench ...",
            file=sys.stderr,
        )
    return {
        "platform": device.platform,
        "device": f"{platform.machine()}, {cores} cores" if device.platform == "cpu" else device.device_kind,
        "load_average": load,
        "versions": {name: version(name) for name in ("jax", *(TORCH_PACKAGES if with_torch else ()))},
    }


def measure(
    prepare: Mapping[str, Callable[[], Prepared]], repeats: int, warmup: int, peak: Peak, label: str
) -> dict[str, Any]:
    """Prepares all sides of one computation, compares what they compute, and times them in turns.

    Args:
        prepare: by side.
        repeats: timings of each side.
        warmup: untimed runs of each side.
        peak: of the device.
        label: for the progress on standard error.

    Returns:
        JSON-ready. Operations: 'flops' as we count them, 'compiled_flops' as XLA does, 'torch_flops' as torch does.
        For each side its seconds, and the rate of the operations as we count them. With torch also 'relative_errors'
        (None where not finite) and 'ratio', torch's time over ours.
    """
    prepared: dict[str, Prepared] = {}
    for side, make in prepare.items():
        print(f"{label}: {side} compiles and runs once", file=sys.stderr)
        prepared[side] = make()
    works = {side: preparation.work for side, preparation in prepared.items()}
    with Progress(label, repeats * len(works), unit="timing") as progress:
        timings = time_in_turns(works, repeats, warmup, progress)
    ours = prepared["ours"]
    figures: dict[str, Any] = {
        "flops": ours.flops,
        "compiled_flops": ours.compiled_flops,
        "peak_bytes": ours.peak_bytes,
    }
    for side, timing in timings.items():
        rate = ours.flops / timing.median
        figures[side] = {
            "median_seconds": timing.median,
            "min_seconds": timing.minimum,
            "first_seconds": prepared[side].first_seconds,
            "flops_per_second": rate,
            "share_of_peak": peak.share(rate),
        }
    if "torch" in prepared:
        errors = relative_errors(ours.outputs, prepared["torch"].outputs)
        figures |= {
            "torch_flops": prepared["torch"].flops,
            "relative_errors": {name: error if math.isfinite(error) else None for name, error in errors.items()},
            "ratio": times_as_long(timings["torch"], timings["ours"]),
        }
    return figures


def agree(results: Sequence[Mapping[str, Any]], tolerance: float) -> bool:
    """Whether all relative errors of `measure`'s results are within the tolerance; True without torch."""
    errors = [error for result in results for error in result.get("relative_errors", {}).values()]
    return all(error is not None and error <= tolerance for error in errors)


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each side of each result; these are `measure`'s, with 'pass' and 'batch_size' added."""
    rows = []
    for result in results:
        for side in ("ours", "torch"):
            if side not in result:
                continue
            share = result[side]["share_of_peak"]
            ratio = result.get("ratio") if side == "ours" else None
            rows.append(
                (
                    result["pass"],
                    result["batch_size"],
                    side,
                    f"{1e3 * result[side]['median_seconds']:.1f}",
                    f"{1e3 * result[side]['min_seconds']:.1f}",
                    f"{result[side]['flops_per_second'] / 1e9:.1f}",
                    "-" if share is None else f"{100 * share:.0f}%",
                    "" if ratio is None else f"{ratio:.2f}",
                )
            )
    headers = ("pass", "batch", "side", "median ms", "min ms", "GFLOP/s", "of peak", "torch / ours")
    return format_table(rows, headers)
