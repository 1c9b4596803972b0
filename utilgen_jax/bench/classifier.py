"""Times a classifier's training step on photographs, alone or against transformers' ResNet in PyTorch.

  python -m utilgen_jax.bench classifier --name=resnet50 --batch_size=128 --dtype=bfloat16 --against=torch

Images are random. Torch's side is built as its users build it for speed: channels last, autocast to --dtype, SGD with
momentum, compiled on a GPU. Its weights are its own and its norms those of a batch, where ours are group norms: the
table compares times and operations, no values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from utilgen_jax.bench import peaks, sides
from utilgen_jax.bench.jax_classifier import NUM_CLASSES, prepare_ours
from utilgen_jax.config.schema import choice_problems

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")
_DTYPES = ("float32", "bfloat16")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("name", "resnet50", f"of the network: {', '.join(NAMES)}", flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "images a step", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("image_size", 224, "in pixels", lower_bound=32, flag_values=values)
    flags.DEFINE_string("dtype", "float32", f"of activations: {', '.join(_DTYPES)}", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = choice_problems("name", settings["name"], NAMES)
    problems += choice_problems("dtype", settings["dtype"], _DTYPES)
    return problems + (sides.check_torch() if settings["against"] == "torch" else [])


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Times what the flags say.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.

    Raises:
        InputError: torch has no such device.
    """
    name, batch_size, dtype = settings["name"], settings["batch_size"], settings["dtype"]
    with_torch = settings["against"] == "torch"
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *[settings["image_size"]] * 2, 3), np.float32)
    labels = rng.integers(NUM_CLASSES, size=batch_size)
    prepare = {"ours": functools.partial(prepare_ours, name, dtype, images, labels)}
    if with_torch:
        platform = sides.torch_device()
        from utilgen_jax.bench.torch_classifier import prepare_torch

        prepare["torch"] = functools.partial(prepare_torch, name, dtype, images, labels, platform)
    peak = peaks.find_peak(dtype, [functools.partial(peaks.jax_matmul, dtype)])
    measured = sides.measure(prepare, settings["repeats"], settings["warmup"], peak, f"{name}, batch {batch_size}")
    result = {"pass": "step", "batch_size": batch_size, **measured}
    speeds = {side: batch_size / result[side]["median_seconds"] for side in prepare}
    machine = sides.describe_machine(with_torch)
    figures = {
        "benchmark": "classifier",
        **{flag: settings[flag] for flag in ("name", "image_size", "dtype", "against", "repeats")},
        **machine,
        "images_per_second": speeds,
        "results": [result],
    }
    title = f"{name}, {settings['image_size']} pixels, {dtype}, on {machine['device']}:"
    told = ", ".join(f"{side} {speed:.0f}" for side, speed in speeds.items())
    return f"{title}\n\n{sides.format_results([result])}\n\nimages a second: {told}\n", figures
