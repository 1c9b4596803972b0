"""Times the bilevel update of classifier and weighting, alone or against the textbook way in PyTorch; or the whole one.

  python -m utilgen_jax.bench bilevel --against=torch
  python -m utilgen_jax.bench bilevel --models=mlp --batch_size=256
  python -m utilgen_jax.bench bilevel --update=whole --config=configs/digits.py
  python -m utilgen_jax.bench bilevel --update=whole --config=configs/cifar.py --architecture=sd15

Three steps on 32×32 images, each with the same batch and as many validation images: the classifier's own (plain),
with a weight network on the loss (Meta-Weight-Net, UtilGen) and with SAFLEX. Torch computes the first two: the
lookahead by `functional_call` and a graph of the gradient. What both compute is compared before the clock starts;
then they take turns.

Beside the times stand operations and memory of the compiled step, which do not wobble, and how many plain steps they
are; "every M" spreads a step's outer level over M inner steps. Exit status 1 where the two sides disagree.

--update=whole is the method joint's update, with classifier and generator of --config: the classifier's plain step, all
levels, and all without a part that --without names. Weights and images are random, so that no data are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from utilgen_jax.bench import peaks, sides
from utilgen_jax.bench.jax_bilevel import STEPS, JaxBilevel, draw_inputs
from utilgen_jax.bench.timing import Prepared
from utilgen_jax.bench.whole_update import WholeUpdate
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.joint.program import LEVELS, REGULARIZERS
from utilgen_jax.report.table import format_table

MODELS = ("mlp", "resnet20")
UPDATES = ("weighting", "whole")
PARTS = (*LEVELS, *REGULARIZERS)
_TOLERANCE = 1e-3  # relative, of losses and norms after one step


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("update", "weighting", f"which: {', '.join(UPDATES)}", flag_values=values)
    flags.DEFINE_string("config", "configs/digits.py", "of --update=whole; FILE:VARIANT", flag_values=values)
    flags.DEFINE_string("architecture", None, "published, in place of the config's generator", flag_values=values)
    flags.DEFINE_list("without", [], f"parts left out, a row each: {', '.join(PARTS)}", flag_values=values)
    flags.DEFINE_integer("num_classes", 10, "of --update=whole", lower_bound=2, flag_values=values)
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
    choices = {"models": MODELS, "steps": tuple(STEPS), "update": UPDATES, "without": PARTS}
    for flag, valid in (choices | {"architecture": tuple(ARCHITECTURES)}).items():
        problems += choice_problems(flag, settings[flag], valid)
    problems += [f"--{flag}: name at least one" for flag in ("models", "steps") if not settings[flag]]
    if settings["update"] == "whole" and settings["against"] == "torch":
        problems.append("--against=torch: the whole update has no torch side; time ours alone, --against=none")
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
    if settings["update"] == "whole":
        return run_whole(settings)
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
    return _text(title, results, settings["outer_every"]), figures


def run_whole(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Times the method joint's update; arguments and results as of `run`."""
    whole = WholeUpdate(settings["config"], settings["architecture"], settings["num_classes"])
    machine = sides.describe_machine(with_torch=False)
    peak = peaks.find_peak("float32", [JaxBilevel("mlp").matmul])
    steps: dict[str, Callable[[], Prepared]] = {
        "plain": functools.partial(whole.prepare, is_outer=False),
        "all levels": whole.prepare,
    }
    steps |= {f"without {part}": functools.partial(whole.prepare, (part,)) for part in settings["without"]}
    batch_size, results = whole.program.config.batch_size, []
    for step, prepare in steps.items():
        measured = sides.measure({"ours": prepare}, settings["repeats"], settings["warmup"], peak, step)
        results.append({"pass": step, "batch_size": batch_size, "model": "whole", "step": step, **measured})
    add_multiples(results, settings["outer_every"])
    figures = {
        "benchmark": "bilevel",
        **{flag: settings[flag] for flag in ("update", "without", "num_classes", "outer_every", "repeats")},
        "generator": whole.origin,
        "classifier": settings["config"].classifier.name,
        "num_generated": whole.program.joint.num_generated,
        **machine,
        "results": results,
    }
    title = f"the joint update, {whole.origin}, on {machine['device']}, {jax.default_backend()}:"
    return _text(title, results, settings["outer_every"]), figures


def _text(title: str, results: Sequence[Mapping[str, Any]], outer_every: int) -> str:
    return f"{title}\n\n{sides.format_results(results)}\n\n{format_costs(results, outer_every)}\n"


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
