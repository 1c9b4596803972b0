"""All that a GPU or a TPU should show, in minutes: one table and one JSON file.

  bash launch/gpu_check.sh                                    installs what it needs first
  python -m utilgen_jax.bench device --out=check.json
  python -m utilgen_jax.bench device --toy                    the same checks at toy size, on any machine

Each check is a benchmark in a process of its own, so that one that fails takes no other with it; --minutes bounds them
all, and what does not fit is told. Torch is timed beside ours on a GPU whose torch sees it. --against, --repeats and
--warmup have no effect here.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.report.table import format_markdown_table
from utilgen_jax.runtime.atomic_write import write_text

Figures = Mapping[str, Any]
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Check:
    """A benchmark with its flags.

    Attributes:
        arguments: of `python -m utilgen_jax.bench`.
        toy: the same at toy size.
        against: whether it has a torch side.
        rows: its figures as rows: what, ours, torch / ours, share of the peak, peak memory.
    """

    arguments: tuple[str, ...]
    toy: tuple[str, ...]
    rows: Callable[[Figures], list[Row]]
    against: bool = False


HEADERS = ("", "ours", "torch / ours", "of peak", "peak GiB")


def _timed(figures: Figures) -> list[Row]:
    """A row for each result of `sides.measure`."""
    rows: list[Row] = []
    for result in figures["results"]:
        ours, name = result["ours"], f"{figures['benchmark']}, {result['pass']}, batch {result['batch_size']}"
        share, ratio, peak = ours["share_of_peak"], result.get("ratio"), result["peak_bytes"]
        seconds, speed = ours["median_seconds"], result["batch_size"] / ours["median_seconds"]
        rows.append(
            (
                name,
                f"{1e3 * seconds:.1f} ms, {speed:.1f} images/s",
                "" if ratio is None else f"{ratio:.2f}",
                "" if share is None else f"{share:.0%}",
                "" if peak is None else f"{peak / 2**30:.1f}",
            )
        )
    return rows


def _precision(figures: Figures) -> list[Row]:
    return [
        (f"error of {each['dtype']}, {each['attention']} attention", f"{each['max_error']:.1e}", "", "", "")
        for each in figures["results"]
    ]


def _job(figures: Figures) -> list[Row]:
    compiling = sum(row["trace"] + row["compile"] for row in figures["stages"].values())
    text = f"{figures['seconds']:.0f} s, {compiling:.0f} s of them compiling"
    return [("the main job on digits", text, "", "", f"{figures['memory'] / 2**10:.1f} (host)")]


CHECKS: Mapping[str, Check] = {
    "precision": Check(
        ("precision", "--architecture=sd15"),
        ("precision", "--architecture=tiny", "--dtypes=float32"),
        _precision,
    ),
    "unet": Check(
        ("unet", "--architecture=sd15", "--batch_sizes=1,4,16", "--passes=forward", "--dtype=bfloat16"),
        ("unet", "--architecture=tiny", "--passes=forward"),
        _timed,
        against=True,
    ),
    "bilevel": Check(
        (
            *("bilevel", "--update=whole", "--config=cifar", "--architecture=sd15"),
            *("--config.classifier.name=resnet50", "--config.generator.dtype=bfloat16"),
            *("--config.generator.image_size=512", "--config.joint.num_generated=16"),
        ),
        (
            *("bilevel", "--update=whole", "--config=digits:runlocal", "--config.classifier.name=mlp"),
            "--config.joint.num_generated=2",
        ),
        _timed,
    ),
    "sampling": Check(
        ("sampling", "--architecture=sd15", "--steps=30", "--batch_sizes=1,16", "--dtype=bfloat16"),
        ("sampling", "--architecture=glyphs", "--steps=2", "--batch_sizes=2"),
        _timed,
    ),
    "lora_step": Check(
        ("unet", "--architecture=sd15", "--batch_sizes=8", "--passes=lora_step", "--dtype=bfloat16"),
        ("unet", "--architecture=tiny", "--passes=lora_step"),
        _timed,
        against=True,
    ),
    "classifier": Check(
        ("classifier", "--name=resnet50", "--batch_size=256", "--dtype=bfloat16"),
        ("classifier", "--name=resnet18", "--batch_size=2", "--image_size=64"),
        _timed,
        against=True,
    ),
    "job": Check(("job", "--config=digits"), ("job", "--config=digits:runlocal,method=vanilla"), _job),
}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_list("checks", list(CHECKS), f"which, of {', '.join(CHECKS)}", flag_values=values)
    flags.DEFINE_string("out", "device_check.json", "file for all figures", flag_values=values)
    flags.DEFINE_float("minutes", 8.0, "for all checks", lower_bound=0.01, flag_values=values)
    flags.DEFINE_boolean("toy", False, "at toy size", flag_values=values)
    flags.DEFINE_boolean("torch", None, "beside torch; default where torch sees a GPU", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    from utilgen_jax.config.schema import choice_problems

    problems = choice_problems("checks", settings["checks"], CHECKS)
    return problems + ([] if settings["against"] == "none" else ["--against: say --torch or --notorch"])


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Runs the checks one after the other.

    Args:
        settings: values of all flags, checked.

    Returns:
        A Markdown table, and all figures, JSON-ready; its 'agree' is False where a check failed.
    """
    with_torch = torch_sees_a_gpu() if settings["torch"] is None else settings["torch"]
    end = time.monotonic() + 60 * settings["minutes"]
    results: dict[str, Any] = {}
    rows: list[Row] = []
    for number, name in enumerate(settings["checks"], 1):
        check = CHECKS[name]
        arguments = [*(check.toy if settings["toy"] else check.arguments), "--repeats=3"]
        arguments += ["--against=torch"] if with_torch and check.against else []
        print(f"[{number}/{len(settings['checks'])}] bench {' '.join(arguments)}", file=sys.stderr, flush=True)
        found = _run(arguments, end - time.monotonic())
        results[name] = found
        rows += [(name, found["failed"], "", "", "")] if "failed" in found else check.rows(found)
        figures = {"benchmark": "device", "device": _device(results), "toy": settings["toy"], "checks": results}
        write_text(Path(settings["out"]), json.dumps(figures, indent=1) + "\n")
    figures["agree"] = not any("failed" in found for found in results.values())
    table = format_markdown_table(rows, HEADERS)
    return f"{figures['device']}:\n\n{table}\n\nwritten: {settings['out']}\n", figures


def torch_sees_a_gpu() -> bool:
    """Asked of another process: torch would keep a part of the device's memory."""
    command = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", command], capture_output=True).returncode == 0


def _run(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """The figures of a benchmark, or why there are none, as 'failed'."""
    if seconds <= 0:
        return {"failed": "not run: no time was left"}
    command = [sys.executable, "-m", "utilgen_jax.bench", *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 1) or not lines:
        return {"failed": f"status {done.returncode}, see standard error"}
    figures = json.loads(lines[-1])
    return figures | ({"failed": "the two sides do not compute the same"} if done.returncode else {})


def _device(results: Mapping[str, Figures]) -> str:
    return next((str(found["device"]) for found in results.values() if "device" in found), "no device")
