"""Times the UNet's forward pass and the LoRA training step, alone or against diffusers and peft in PyTorch.

  python -m utilgen_jax.bench unet --against=torch --architecture=sd15 --latent_size=64 --batch_sizes=1,4,16 \\
      --dtype=bfloat16
  python -m utilgen_jax.bench unet --against=torch --checkpoint=FOLDER --passes=forward

Weights and inputs are random, the same on both sides; what both compute from them is compared before the clock starts.
Then they take turns. FLOP are those of matrix products and convolutions; "torch / ours" is the ratio of the times, the
median over the turns: above 1 ours is the faster. Compiling and the first run are not in it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import flags

from utilgen_jax import checkpoints
from utilgen_jax.bench import peaks, sides
from utilgen_jax.bench.jax_unet import JaxUNet, UNetSettings
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.models.dot_product_attention import IMPLEMENTATIONS
from utilgen_jax.models.gradient_checkpointing import GRADIENT_CHECKPOINTING

PASSES = ("forward", "lora_step")
_ARCHITECTURE = "sd15"  # where none is named
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
# Name -> config.json of the UNet, scheduler_config.json.
CONFIGS = {name: (parts["unet"], parts["scheduler"]) for name, parts in ARCHITECTURES.items()}
CONFIGS["tiny"] = (_TINY, ARCHITECTURES["sd15"]["scheduler"])
# Beyond these the sides do not compute the same, rounded otherwise; float32 products are TF32 on a GPU.
TOLERANCES = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""

    def text(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def whole(name: str, default: int | None, help: str) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=1, flag_values=values)

    text("architecture", None, f"size of the UNet: {', '.join(CONFIGS)}; default {_ARCHITECTURE}")
    text("checkpoint", None, "folder in diffusers' format, or 'glyphs', to take the size from instead")
    whole("latent_size", None, "height and width of the latents; default the architecture's")
    flags.DEFINE_list("batch_sizes", ["1"], "one or several", flag_values=values)
    flags.DEFINE_list("passes", list(PASSES), "what to time", flag_values=values)
    text("dtype", "float32", f"to compute in: {', '.join(TOLERANCES)}")
    text("weights_dtype", None, "to keep the weights in; default --dtype")
    whole("rank", 16, "of the LoRA, on the attention's projections")
    text("attention", "auto", f"ours: auto, {', '.join(IMPLEMENTATIONS)}")
    text("gradient_checkpointing", "none", f"of lora_step: {', '.join(GRADIENT_CHECKPOINTING)} (torch: none or not)")
    flags.DEFINE_boolean("compile", None, "torch.compile; default on a GPU only", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = []
    choices: dict[str, Iterable[str]] = {
        "architecture": CONFIGS,
        "passes": PASSES,
        "dtype": TOLERANCES,
        "weights_dtype": TOLERANCES,
        "attention": ("auto", *IMPLEMENTATIONS),
        "gradient_checkpointing": GRADIENT_CHECKPOINTING,
    }
    for flag, valid in choices.items():
        problems += choice_problems(flag, settings[flag], valid)
    for flag in ("passes", "batch_sizes"):
        if not settings[flag]:
            problems.append(f"--{flag}: name at least one")
    problems += sides.check_batch_sizes(settings["batch_sizes"])
    if settings["architecture"] and settings["checkpoint"]:
        problems.append("--architecture, --checkpoint: give one of them")
    if settings["against"] == "torch":
        problems += sides.check_torch()
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
    machine = sides.describe_machine(with_torch=settings["against"] == "torch")
    unet_config, scheduler_config = _configs(settings)
    dtype = settings["dtype"]
    weights_dtype = settings["weights_dtype"] or dtype
    latent_size = settings["latent_size"] or unet_config["sample_size"]
    shared = UNetSettings(dtype, weights_dtype, settings["rank"])
    checkpointing = settings["gradient_checkpointing"]
    ours = JaxUNet(
        unet_config, scheduler_config, shared, attention=settings["attention"], gradient_checkpointing=checkpointing
    )
    unets: dict[str, Any] = {"ours": ours}
    compiles = False
    if settings["against"] == "torch":
        device = sides.torch_device()
        compiles = device == "gpu" if settings["compile"] is None else settings["compile"]
        from utilgen_jax.bench.torch_unet import TorchUNet

        unets["torch"] = TorchUNet(
            unet_config,
            ours,
            platform=device,
            compile=compiles,
            gradient_checkpointing=checkpointing != "none",
        )
    peak = peaks.find_peak(dtype, [unet.matmul for unet in unets.values()])
    plan = [(name, int(size)) for name in settings["passes"] for size in settings["batch_sizes"]]
    results = []
    for number, (name, batch_size) in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] {name}, batch {batch_size}"
        inputs = ours.inputs(batch_size, latent_size)
        prepare = {side: functools.partial(getattr(unet, name), inputs) for side, unet in unets.items()}
        measured = sides.measure(prepare, settings["repeats"], settings["warmup"], peak, label)
        results.append({"pass": name, "batch_size": batch_size, **measured})
    figures = {
        "benchmark": "unet",
        "architecture": settings["checkpoint"] or settings["architecture"] or _ARCHITECTURE,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ours.params)),
        "latent_size": latent_size,
        **dataclasses.asdict(shared),
        **{flag: settings[flag] for flag in ("against", "attention", "gradient_checkpointing", "repeats")},
        "torch_compile": compiles,
        **machine,
        "peak_flops_per_second": peak.flops_per_second,
        "peak_source": peak.source,
        "results": results,
        "agree": sides.agree(results, TOLERANCES[dtype]),
    }
    title = (
        f"{figures['architecture']}, {figures['parameters'] / 1e6:.1f} M parameters, {latent_size}x{latent_size} "
        f"latents, {dtype}, on {machine['device']}:"
    )
    return f"{title}\n\n{sides.format_results(results)}\n", figures


def _configs(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The UNet's and the scheduler's config."""
    if not settings["checkpoint"]:
        return CONFIGS[settings["architecture"] or _ARCHITECTURE]
    folder = checkpoints.resolve_checkpoint(settings["checkpoint"], configs_only=True)
    schedule = checkpoints.load_config(folder / "scheduler", "scheduler_config.json")
    return checkpoints.load_config(folder / "unet"), schedule
