"""How far the UNet is from float32 with full products: in each dtype, by each attention that the device has.

  python -m utilgen_jax.bench precision --architecture=sd15

Weights and inputs are random, see `bench unet`. The figures are the largest and the root mean square difference of the
prediction, relative to the largest and to the root mean square value. Exit status 1 where one is beyond the dtype's
tolerance. Nothing is timed: --against, --repeats and --warmup have no effect here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from utilgen_jax.bench import sides
from utilgen_jax.bench.jax_unet import JaxUNet, UNetSettings
from utilgen_jax.bench.unet import CONFIGS, TOLERANCES
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.report.table import format_table

_ATTENTIONS = {"cpu": ("plain", "chunked"), "gpu": ("plain", "chunked", "cudnn"), "tpu": ("plain", "splash")}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("architecture", "sd15", f"of the UNet: {', '.join(CONFIGS)}", flag_values=values)
    flags.DEFINE_integer("latent_size", None, "height and width; default its own", lower_bound=1, flag_values=values)
    flags.DEFINE_list("dtypes", ["float32", "bfloat16"], f"of {', '.join(TOLERANCES)}", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = choice_problems("architecture", settings["architecture"], CONFIGS)
    problems += choice_problems("dtypes", settings["dtypes"], TOLERANCES)
    return problems + ([] if settings["against"] == "none" else ["--against: the reference is our own"])


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Compares.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.
    """
    unet, scheduler = CONFIGS[settings["architecture"]]
    size = settings["latent_size"] or unet["sample_size"]

    def predict(dtype: str, attention: str) -> np.ndarray:
        ours = JaxUNet(unet, scheduler, UNetSettings(dtype, dtype, rank=1), attention=attention)
        return ours.forward(ours.inputs(1, size)).outputs["prediction"]

    with jax.default_matmul_precision("highest"):
        expected = predict("float32", "plain")
    results = []
    for dtype in settings["dtypes"]:
        for attention in _ATTENTIONS[jax.default_backend()]:
            if attention == "cudnn" and dtype == "float32":  # which it has not
                continue
            error = predict(dtype, attention) - expected
            results.append(
                {
                    "dtype": dtype,
                    "attention": attention,
                    "max_error": float(np.abs(error).max() / np.abs(expected).max()),
                    "rms_error": float(np.sqrt(np.mean(error**2) / np.mean(expected**2))),
                }
            )
    rows = [
        (each["dtype"], each["attention"], *(f"{each[k]:.1e}" for k in ("max_error", "rms_error"))) for each in results
    ]
    machine = sides.describe_machine(with_torch=False)
    figures = {
        "benchmark": "precision",
        "architecture": settings["architecture"],
        "latent_size": size,
        **machine,
        "results": results,
        "agree": all(each["max_error"] <= TOLERANCES[each["dtype"]] for each in results),
    }
    title = f"{settings['architecture']}, {size}x{size} latents, on {machine['device']}:"
    return f"{title}\n\n{format_table(rows, ('dtype', 'attention', 'max error', 'rms error'))}\n", figures
