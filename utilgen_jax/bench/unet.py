"""Times the UNet's forward pass and the LoRA training step, alone or against diffusers and peft in PyTorch.

  python -m utilgen_jax.bench unet --against=torch --architecture=sd15 --latent_size=64 --batch_sizes=1,4,16 \\
      --dtype=bfloat16
  python -m utilgen_jax.bench unet --against=torch --checkpoint=FOLDER --passes=forward

Weights and inputs are random, the same on both sides; what both compute from them is compared before the clock starts.
Then they take turns. FLOP are those of matrix products and convolutions; "torch / ours" is the ratio of the times, the
median over the turns: above 1 ours is the faster. Compiling and the first run are not in it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
from absl import flags

from utilgen_jax import weights
from utilgen_jax.bench import peaks
from utilgen_jax.bench.jax_unet import JaxUNet
from utilgen_jax.bench.timing import Prepared, Timing, relative_errors, time_in_turns, times_as_long
from utilgen_jax.config import nearest
from utilgen_jax.errors import InputError
from utilgen_jax.generator.published import ARCHITECTURES
from utilgen_jax.models.dot_product_attention import IMPLEMENTATIONS
from utilgen_jax.models.gradient_checkpointing import GRADIENT_CHECKPOINTING
from utilgen_jax.report.progress import Progress
from utilgen_jax.report.table import format_table

PASSES = ("forward", "lora_step")
# Small enough to try the command in seconds.
_TINY: Mapping[str, Any] = {
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": 64,
}
_UNETS = {name: parts["unet"] for name, parts in ARCHITECTURES.items()} | {"tiny": _TINY}
_SCHEDULERS = {name: parts["scheduler"] for name, parts in ARCHITECTURES.items()} | {
    "tiny": ARCHITECTURES["sd15"]["scheduler"]
}
# Beyond these the sides do not compute the same, rounded otherwise; float32 products are TF32 on a GPU.
_TOLERANCES = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}
_TORCH_PACKAGES = ("torch", "diffusers", "peft")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""

    def text(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def whole(name: str, default: int | None, help: str) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=1, flag_values=values)

    text("architecture", None, f"size of the UNet: {', '.join(_UNETS)}; default sd15")
    text("checkpoint", None, "folder in diffusers' format, or 'glyphs', to take the size from instead")
    whole("latent_size", None, "height and width of the latents; default the architecture's")
    flags.DEFINE_list("batch_sizes", ["1"], "one or several", flag_values=values)
    flags.DEFINE_list("passes", list(PASSES), "what to time", flag_values=values)
    text("dtype", "float32", f"to compute in: {', '.join(_TOLERANCES)}")
    text("weights_dtype", None, "to keep the weights in; default --dtype")
    whole("rank", 16, "of the LoRA, on the attention's projections")
    text("attention", "auto", f"ours: auto, {', '.join(IMPLEMENTATIONS)}")
    text("gradient_checkpointing", "none", f"of lora_step: {', '.join(GRADIENT_CHECKPOINTING)} (torch: none or not)")
    flags.DEFINE_boolean("compile", None, "torch.compile; default on a GPU only", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = []
    choices: dict[str, tuple[list[Any], Any]] = {
        "architecture": ([settings["architecture"]], _UNETS),
        "passes": (settings["passes"], PASSES),
        "dtype": ([settings["dtype"]], _TOLERANCES),
        "weights_dtype": ([settings["weights_dtype"]], _TOLERANCES),
        "attention": ([settings["attention"]], ("auto", *IMPLEMENTATIONS)),
        "gradient_checkpointing": ([settings["gradient_checkpointing"]], GRADIENT_CHECKPOINTING),
    }
    for flag, (given, valid) in choices.items():
        problems += [
            f"--{flag}={value}: is not one of {', '.join(valid)}; the nearest is {nearest(value, valid)}"
            for value in given
            if value is not None and value not in valid
        ]
    for flag in ("passes", "batch_sizes"):
        if not settings[flag]:
            problems.append(f"--{flag}: name at least one")
    problems += [
        f"--batch_sizes: expected whole numbers of at least 1, got {size!r}"
        for size in settings["batch_sizes"]
        if not size.isdecimal() or int(size) < 1
    ]
    if settings["architecture"] and settings["checkpoint"]:
        problems.append("--architecture, --checkpoint: give one of them")
    if settings["against"] == "torch":
        missing = [name for name in _TORCH_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            problems.append(f"--against=torch: {', '.join(missing)} missing; pip install {' '.join(missing)}")
        if settings["weights_dtype"] not in (None, "float32", settings["dtype"]):
            problems.append("--weights_dtype: torch computes in --dtype from weights in that or in float32")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Times what the flags say.

    Args:
      settings: values of all flags, checked.

    Returns:
      A table for people, and all figures, JSON-ready.

    Raises:
      InputError: the checkpoint is none, or torch has no such device.
    """
    machine = _machine(settings["against"] == "torch")
    _warn_if_busy()
    unet_config, scheduler_config = _configs(settings)
    dtype = settings["dtype"]
    weights_dtype = settings["weights_dtype"] or dtype
    latent_size = settings["latent_size"] or unet_config["sample_size"]
    shared = {"dtype": dtype, "weights_dtype": weights_dtype, "rank": settings["rank"]}
    checkpointing = settings["gradient_checkpointing"]
    ours = JaxUNet(
        unet_config, scheduler_config, **shared, attention=settings["attention"], gradient_checkpointing=checkpointing
    )
    sides: dict[str, Any] = {"ours": ours}
    compiles = False
    if settings["against"] == "torch":
        device = _torch_device()
        compiles = device == "gpu" if settings["compile"] is None else settings["compile"]
        from utilgen_jax.bench.torch_unet import TorchUNet

        sides["torch"] = TorchUNet(
            unet_config,
            ours.params,
            ours.lora,
            **shared,
            platform=device,
            compile=compiles,
            gradient_checkpointing=checkpointing != "none",
        )
    peak = _peak(dtype, sides)
    plan = [(name, int(size)) for name in settings["passes"] for size in settings["batch_sizes"]]
    results = []
    for number, (name, batch_size) in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] {name}, batch {batch_size}"
        inputs = ours.inputs(batch_size, latent_size)
        prepared: dict[str, Prepared] = {}
        for side, unet in sides.items():
            print(f"{label}: {side} compiles and runs once", file=sys.stderr)
            prepared[side] = getattr(unet, name)(inputs)
        works = {side: preparation.work for side, preparation in prepared.items()}
        with Progress(label, settings["repeats"] * len(works), unit="timing") as progress:
            timings = time_in_turns(works, settings["repeats"], settings["warmup"], progress)
        results.append({"pass": name, "batch_size": batch_size, **_figures(prepared, timings, peak)})
    figures = {
        "benchmark": "unet",
        "architecture": settings["checkpoint"] or settings["architecture"] or "sd15",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ours.params)),
        "latent_size": latent_size,
        **shared,
        **{flag: settings[flag] for flag in ("against", "attention", "gradient_checkpointing", "repeats")},
        "torch_compile": compiles,
        **machine,
        "peak_flops_per_second": peak.flops_per_second,
        "peak_source": peak.source,
        "results": results,
        "agree": all(
            error <= _TOLERANCES[dtype] for result in results for error in result.get("relative_errors", {}).values()
        ),
    }
    return _table(figures), figures


def _configs(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The UNet's and the scheduler's config."""
    if settings["checkpoint"]:
        folder = weights.resolve_checkpoint(settings["checkpoint"])
        schedule = weights.load_config(folder / "scheduler", "scheduler_config.json")
        return weights.load_config(folder / "unet"), schedule
    name = settings["architecture"] or "sd15"
    return _UNETS[name], _SCHEDULERS[name]


def _torch_device() -> str:
    """The kind of device that both sides have, as JAX calls it."""
    import torch

    kind = jax.default_backend()
    if kind not in ("cpu", "gpu"):
        raise InputError(f"--against=torch: torch does not run on this {kind}; time ours alone, --against=none")
    if kind == "gpu" and not torch.cuda.is_available():
        raise InputError("--against=torch: this torch does not see the GPU; install one with CUDA from pytorch.org")
    return kind


def _peak(dtype: str, sides: Mapping[str, Any]) -> peaks.Peak:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return peaks.device_peak(device.device_kind, dtype)
    return peaks.measured_peak([side.matmul for side in sides.values()])


def _machine(with_torch: bool) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": f"{platform.machine()}, {_cores()} cores" if device.platform == "cpu" else device.device_kind,
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("jax", *(_TORCH_PACKAGES if with_torch else ()))},
    }


def _cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _warn_if_busy() -> None:
    """Tells where other programs compete for the processor: threads that wait for each other then distort the ratio."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if jax.default_backend() == "cpu" and load > 0.5 * cores:
        print(
            f"warning: this machine is busy (load average {load:.1f}, {cores} cores); for a ratio to trust, wait until "
            "it is not, or give both sides one core: taskset -c 0 python -m utilgen_jax.bench ...",
            file=sys.stderr,
        )


def _figures(prepared: Mapping[str, Prepared], timings: Mapping[str, Timing], peak: peaks.Peak) -> dict[str, Any]:
    """All figures of one pass at one batch size; rates are of our count of operations on both sides."""
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
        torch = prepared["torch"]
        figures |= {
            "torch_flops": torch.flops,
            "relative_errors": relative_errors(ours.outputs, torch.outputs),
            "ratio": times_as_long(timings["torch"], timings["ours"]),
        }
    return figures


def _table(figures: Mapping[str, Any]) -> str:
    """One row for each side of each pass at each batch size."""
    rows = []
    for result in figures["results"]:
        for side in ("ours", "torch"):
            if side not in result:
                continue
            share, ratio = result[side]["share_of_peak"], result.get("ratio") if side == "ours" else None
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
    title = (
        f"{figures['architecture']}, {figures['parameters'] / 1e6:.1f} M parameters, {figures['latent_size']}x"
        f"{figures['latent_size']} latents, {figures['dtype']}, on {figures['device']}:"
    )
    return f"{title}\n\n{format_table(rows, headers)}\n"
