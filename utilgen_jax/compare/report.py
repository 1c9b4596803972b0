"""Writes a comparison as tables in text, markdown and JSON, and as a figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax import report
from utilgen_jax.compare.statistics import (
    Interval,
    MethodResult,
    Run,
    accuracies,
    best_published,
    error_reduction,
    interval,
    method_results,
)
from utilgen_jax.methods import METHODS, PUBLISHED
from utilgen_jax.runtime.atomic_write import write_text

Formatter = Callable[[Sequence[Sequence[object]], Sequence[str]], str]

_NOTE = (
    "Accuracies are means ± standard deviations over seeds. Differences are in points, paired by seed, with 95 % "
    "intervals;\nplain is `vanilla`. Seconds are the sum over the stages of a run; stages that methods share count in "
    "each."
)


def write_comparison(
    folder: Path, settings: dict[str, Any], runs: Sequence[Run], plan: Sequence[tuple[int, int, str]]
) -> None:
    """Prints the comparison, and writes it as `compare.md`, `compare.json` and `compare.png`.

    Args:
        folder: output folder.
        settings: config shared by the runs, JSON-ready; see `join.shared_settings`.
        runs: finished runs, at least one.
        plan: (shots, seed, method) of all runs of the comparison, methods in display order.
    """
    methods = list(dict.fromkeys(method for _, _, method in plan))
    runs = sorted(runs, key=lambda run: (run.shots, run.seed, methods.index(run.method)))
    finished = {(run.shots, run.seed, run.method) for run in runs}
    missing = [entry for entry in plan if entry not in finished]
    print("\n\n".join([*tables(runs, methods, report.format_table), *_missing_text(missing, len(plan))]))
    page = [*tables(runs, methods, report.format_markdown_table), *_missing_text(missing, len(plan))]
    write_text(folder / "compare.md", "\n\n".join(page) + "\n")
    results = method_results(runs, methods)
    reductions = _error_reductions(runs, methods)
    content = {
        "config": settings,
        "runs": [dataclasses.asdict(run) for run in runs],
        "results": [dataclasses.asdict(result) for result in results],
        "best_published": best_published(runs),
        "error_reduction": {method: dataclasses.asdict(value) for method, value in reductions.items()},
        "missing": [{"method": method, "shots": shots, "seed": seed} for shots, seed, method in missing],
    }
    write_text(folder / "compare.json", json.dumps(content, indent=2) + "\n")
    _plot(runs, results, methods, folder / "compare.png")
    print(f"written: {folder}/compare.md, compare.json, compare.png")


def tables(runs: Sequence[Run], methods: Sequence[str], form: Formatter) -> list[str]:
    """Formats the tables of a comparison.

    Args:
        runs: finished runs, at least one.
        methods: methods in display order.
        form: formats a table from its rows and headers.

    Returns:
        For several numbers of shots, first two tables of methods by shots: accuracies, and differences to `vanilla`.
        Then a table of all results, a note, and the error reductions of the unpublished methods.
    """
    best = best_published(runs)
    results = method_results(runs, methods)
    parts = []
    all_shots = sorted({result.shots for result in results})
    if len(all_shots) > 1:
        columns = [f"{shots} shot" + "s" * (shots != 1) for shots in all_shots]
        parts.append(form(_overview(results, all_shots, _accuracy), ("accuracy, %", *columns)))
        if against_plain := _overview(results, all_shots, lambda result: _text(result.minus_plain)):
            parts.append(form(against_plain, ("minus plain", *columns)))
    parts += [form([_cells(result) for result in results], _headers(best)), _NOTE]
    if reductions := _error_reductions(runs, methods):
        heading = f"error reduction over {best}, %, mean over shots"
        parts.append(form([[METHODS[method].title, value] for method, value in reductions.items()], ("", heading)))
    return parts


def _error_reductions(runs: Sequence[Run], methods: Sequence[str]) -> dict[str, Interval]:
    """Returns the error reduction of each unpublished method over the best published one."""
    best = best_published(runs)
    own = [method for method in methods if method not in PUBLISHED]
    found = {method: error_reduction(runs, method, best) for method in own} if best else {}
    return {method: value for method, value in found.items() if value is not None}


def _headers(best: str | None) -> tuple[str, ...]:
    against = f"minus {best} (best published)" if best else "minus best published"
    return ("shots", "training set", "accuracy, %", "minus real", "minus plain", against, "synthetic", "seconds")


def _overview(
    results: Sequence[MethodResult], all_shots: Sequence[int], text: Callable[[MethodResult], str]
) -> list[list[object]]:
    """Returns a row of texts by number of shots for each method with a text."""
    cells = {(result.method, result.shots): text(result) for result in results}
    methods = dict.fromkeys(result.method for result in results)
    rows = [(method, [cells.get((method, shots), "") for shots in all_shots]) for method in methods]
    return [[METHODS[method].title, *row] for method, row in rows if any(row)]


def _text(difference: Interval | None) -> str:
    return "" if difference is None else str(difference)


def _accuracy(result: MethodResult) -> str:
    return f"{result.accuracy:.1f}" + ("" if result.deviation is None else f" ± {result.deviation:.1f}")


def _cells(result: MethodResult) -> list[object]:
    return [
        result.shots,
        METHODS[result.method].title,
        _accuracy(result),
        _text(result.minus_real),
        _text(result.minus_plain),
        _text(result.minus_best),
        result.num_synthetic,
        f"{result.seconds:.0f}",
    ]


def _missing_text(missing: Sequence[tuple[int, int, str]], total: int) -> list[str]:
    """Lists the missing runs, a line for each method and number of shots."""
    if not missing:
        return []
    seeds: dict[tuple[int, str], list[str]] = {}
    for shots, seed, method in missing:
        seeds.setdefault((shots, method), []).append(str(seed))
    lines = [f"- {method}, {shots} shots, seeds: {', '.join(missed)}" for (shots, method), missed in seeds.items()]
    heading = f"Missing, {len(missing)} of {total} runs; differences use the seeds that both methods have:"
    return ["\n".join([heading, "", *lines])]


def _plot(runs: Sequence[Run], results: Sequence[MethodResult], methods: Sequence[str], path: Path) -> None:
    """Draws a panel for each number of shots: differences to `real`, or accuracies if the runs lack `real`."""
    has_real = any(result.minus_real is not None for result in results)
    panels: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for result in results:
        own, real = (list(accuracies(runs, method, result.shots).values()) for method in (result.method, "real"))
        shown = result.minus_real if has_real else interval(own)
        if shown is not None:
            title = f"shots: {result.shots}" + (f" (real {np.mean(real):.1f} %)" if has_real else "")
            panels.setdefault(title, {})[result.method] = (shown.mean, shown.low, shown.high)
    groups = {method: _group(method) for method in methods if any(method in panel for panel in panels.values())}
    label = "Accuracy minus that of real images only (points)" if has_real else "Test accuracy (%)"
    report.plot_intervals(panels, groups, label, path, reference=0.0 if has_real else None)


def _group(method: str) -> str:
    if METHODS[method].pool is None:
        return "real images only"
    return "published" if method in PUBLISHED else "not published"
