"""The table of a comparison: means, deviations and paired differences, as markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax import report
from utilgen_jax.methods import METHODS
from utilgen_jax.workdir import write_atomically

HEADERS = ("shots", "training set", "accuracy, %", "minus real only", "minus plain", "synthetic", "seconds")


def accuracies(runs: Sequence[dict[str, Any]], method: str, shots: int) -> np.ndarray:
    """Final test accuracies in per cent of one method at one number of shots, by rising seed: [number of seeds]."""
    chosen = [run for run in runs if run["method"] == method and run["shots"] == shots]
    return np.array([100 * run["accuracy"]["final"] for run in sorted(chosen, key=lambda run: run["seed"])])


def table_rows(runs: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[list[str]]:
    """One row for each number of shots and method: mean ± deviation, and paired differences with 95 % intervals.

    Args:
      runs: summaries, as `pipeline.run` returns them; every method with the same seeds.
      methods: in the order of the rows. "real" and "vanilla", where present, are what the others are compared to.

    Returns:
      Rows of text, columns as in `HEADERS`.
    """
    rows = []
    for shots in sorted({run["shots"] for run in runs}):
        for method in methods:
            values = accuracies(runs, method, shots)
            own = [run for run in runs if run["method"] == method and run["shots"] == shots]
            mean, deviation = report.mean_std(values)
            rows.append(
                [
                    str(shots),
                    METHODS[method].title,
                    f"{mean:.1f} ± {deviation:.1f}" if len(values) > 1 else f"{mean:.1f}",
                    _difference(runs, methods, method, "real", shots),
                    _difference(runs, methods, method, "vanilla", shots),
                    str(own[0]["num_synthetic"]),
                    f"{np.mean([sum(run['seconds'].values()) for run in own]):.0f}",
                ]
            )
    return rows


def _difference(runs: Sequence[dict[str, Any]], methods: Sequence[str], method: str, baseline: str, shots: int) -> str:
    """A paired difference with its interval, as text; "" where there is nothing to compare."""
    order = list(METHODS)
    if baseline not in methods or order.index(method) <= order.index(baseline):
        return ""
    mean, low, high = report.paired_difference(accuracies(runs, method, shots), accuracies(runs, baseline, shots))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else f"{mean:+.1f}"


def write_comparison(folder: Path, runs: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    """Prints the table, and writes it as `compare.md`, all runs as `compare.json`, and `accuracy.png`.

    Args:
      folder: where to.
      runs: summaries, as `pipeline.run` returns them.
      methods: in the order of the rows.
    """
    rows = table_rows(runs, methods)
    print(report.format_table(rows, HEADERS))
    write_atomically(folder / "compare.md", report.format_markdown_table(rows, HEADERS) + "\n")
    write_atomically(folder / "compare.json", json.dumps({"runs": list(runs)}, indent=2) + "\n")
    report.plot_comparison(
        {
            METHODS[method].title: {
                shots: accuracies(runs, method, shots) for shots in sorted({run["shots"] for run in runs})
            }
            for method in methods
        },
        folder / "accuracy.png",
    )
    print(f"written: {folder}/compare.md, compare.json, accuracy.png")
