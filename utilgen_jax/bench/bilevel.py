"""Times the bilevel update of classifier and weighting, alone or against the textbook way in PyTorch.

  python -m utilgen_jax.bench bilevel --against=torch
  python -m utilgen_jax.bench bilevel --models=mlp --batch_size=256

Three steps on 32×32 images, each with the same batch and as many validation images: the classifier's own (plain),
with a weight network on the loss (Meta-Weight-Net, UtilGen) and with SAFLEX. Torch computes the first two: the
lookahead by `functional_call` and a graph of the gradient. What both compute is compared before the clock starts;
then they take turns.

Beside the times stand operations and memory of the compiled step, which do not wobble, and how many plain steps they
are; "every M" spreads a step's outer level over M inner steps. Exit status 1 where the two sides disagree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from utilgen_jax.bench import peaks, sides
from utilgen_jax.bench.jax_bilevel import STEPS, JaxBilevel, draw_inputs
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.report.table import format_table

MODELS = ("mlp", "resnet20")
_TOLERANCE = 1e-3  # relative, of losses and norms after one step


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_list("models", list(MODELS), f"classifiers: {', '.join(MODELS)}", flag_values=values)
    flags.DEFINE_list("steps", list(STEPS), f"what to time: {', '.join(STEPS)}", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 128, "images of a batch, and of a validation batch", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "outer_every", 10, "M, inner steps to an outer one, in the amortised figures", lower_bound=1, flag_values=values
    )


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = []
    for flag, valid in (("models", MODELS), ("steps", tuple(STEPS))):
        problems += choice_problems(flag, settings[flag], valid)
        if not settings[flag]:
            problems.append(f"--{flag}: name at least one")
    if settings["against"] == "torch":
        problems += sides.check_torch()
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Times what the flags say.

    Args:
        settings: values of all flags, checked.

    Returns:
        Tables for people, and all figures, JSON-ready.

    Raises:
        InputError: torch has no such device.
    """
    with_torch = settings["against"] == "torch"
    machine = sides.describe_machine(with_torch)
    inputs = draw_inputs(settings["batch_size"])
    peak, results = None, []
    for model in settings["models"]:
        computers: dict[str, Any] = {"ours": (ours := JaxBilevel(model))}
        if with_torch:
            platform = sides.torch_device()
            from utilgen_jax.bench.torch_bilevel import TorchBilevel

            computers["torch"] = TorchBilevel(model, ours.params, ours.weighting_params, platform)
        peak = peak or peaks.find_peak("float32", [computer.matmul for computer in computers.values()])
        for step in settings["steps"]:
            prepare = {
                side: functools.partial(getattr(computer, step), inputs)
                for side, computer in computers.items()
                if hasattr(computer, step)
            }
            label = f"{model}, {step}"
            measured = sides.measure(prepare, settings["repeats"], settings["warmup"], peak, label)
            results.append(
                {"pass": label, "batch_size": settings["batch_size"], "model": model, "step": step, **measured}
            )
    add_multiples(results, settings["outer_every"])
    figures = {
        "benchmark": "bilevel",
        **{flag: settings[flag] for flag in ("against", "batch_size", "outer_every", "repeats")},
        **machine,
        "results": results,
        "agree": sides.agree(results, _TOLERANCE),
    }
    title = f"bilevel steps, float32, on {machine['device']}, {jax.default_backend()}:"
    tables = f"{sides.format_results(results)}\n\n{format_costs(results, settings['outer_every'])}"
    return f"{title}\n\n{tables}\n", figures


def add_multiples(results: Sequence[dict[str, Any]], outer_every: int) -> None:
    """Adds to each result of `sides.measure` what it is in plain steps of its model, where that was measured.

    'flops_multiple' and 'seconds_multiple' for the step itself, 'amortised_multiple' for the operations where the outer
    level is updated every `outer_every` steps.
    """
    plain = {result["model"]: result for result in results if result["step"] == "plain"}
    for result in results:
        own = plain.get(result["model"])
        if own is None or own is result:
            continue
        result["seconds_multiple"] = {
            side: result[side]["median_seconds"] / own[side]["median_seconds"]
            for side in ("ours", "torch")
            if side in result
        }
        if result["compiled_flops"] and own["compiled_flops"]:
            multiple = result["compiled_flops"] / own["compiled_flops"]
            result["flops_multiple"] = multiple
            result["amortised_multiple"] = (outer_every - 1 + multiple) / outer_every


def format_costs(results: Sequence[Mapping[str, Any]], outer_every: int) -> str:
    """A table of the compiled steps' operations and memory; these are results after `add_multiples`."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        (
            result["pass"],
            text(result["compiled_flops"] and result["compiled_flops"] / 1e9, ".2f"),
            text(result.get("flops_multiple"), ".2f"),
            text(result.get("amortised_multiple"), ".2f"),
            text(result["peak_bytes"] and result["peak_bytes"] / 2**20, ".1f"),
            text(result.get("seconds_multiple", {}).get("ours"), ".2f"),
            text(result.get("seconds_multiple", {}).get("torch"), ".2f"),
        )
        for result in results
    ]
    headers = ("step", "GFLOP", "x plain", f"every {outer_every}", "peak MiB", "x plain time", "torch x plain time")
    return format_table(rows, headers)
