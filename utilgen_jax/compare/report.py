"""Writes a comparison as tables in text, markdown and JSON, and as a figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax import report
from utilgen_jax.compare.curve import Formatter, curve_tables, plot_curve, sizes_of, str_accuracy
from utilgen_jax.compare.plan import PlannedRun
from utilgen_jax.compare.statistics import (
    Interval,
    MethodResult,
    Run,
    accuracies,
    best_published,
    error_reduction,
    interval,
    method_results,
    of_size,
    of_synthetic_only,
)
from utilgen_jax.methods import METHODS, PUBLISHED
from utilgen_jax.runtime.atomic_write import write_text

_CURVE_NOTE = (
    "Accuracies are means ± standard deviations over seeds. Differences are in points, paired by seed, with 95 % "
    "intervals;\nplain is `vanilla`."
)
_NOTE = f"{_CURVE_NOTE} Seconds are the sum over the stages of a run; stages that methods share count in each."


def write_comparison(folder: Path, settings: dict[str, Any], runs: Sequence[Run], plan: Sequence[PlannedRun]) -> None:
    """Writes the comparison as `compare.md`, `compare.json` and `compare.png` or `curve.png`, then prints it.

    Args:
        folder: output folder.
        settings: config shared by the runs, JSON-ready; see `join.shared_settings`.
        runs: finished runs, at least one.
        plan: all runs of the comparison, methods in display order.
    """
    methods = list(dict.fromkeys(entry.method for entry in plan))
    runs = sorted(runs, key=lambda run: (run.images_per_shot, run.shots, run.seed, methods.index(run.method)))
    finished = {run.entry for run in runs}
    missing = [entry for entry in plan if entry not in finished]
    columns = _columns(settings, runs)
    text, markdown = (
        "\n\n".join([*_page(columns, methods, form), *_missing_text(missing, len(plan))])
        for form in (report.format_table, report.format_markdown_table)
    )
    write_text(folder / "compare.md", markdown + "\n")
    content = {"config": settings, "runs": [dataclasses.asdict(run) for run in runs]}
    if sizes_of(runs):
        content["curve"] = {
            str(size): {column: _statistics(of_size(own, size), methods) for column, own in columns.items()}
            for size in sizes_of(runs)
        }
        figures = [plot_curve(columns, methods, folder / "curve.png")]
    else:
        # The first column is the comparison itself.
        first, *others = columns
        content |= _statistics(columns[first], methods)
        content |= {column: _statistics(columns[column], methods) for column in others}
        figures = [_plot(columns[first], methods, folder / "compare.png")]
        figures += [_plot(columns[column], methods, folder / f"compare_{column}.png") for column in others]
    content["missing"] = [entry._asdict() for entry in missing]
    write_text(folder / "compare.json", json.dumps(content, indent=2) + "\n")
    print(text)  # when all is on disk
    print(f"written: {folder}/compare.md, compare.json, {', '.join(figure.name for figure in figures)}")


def _columns(settings: dict[str, Any], runs: Sequence[Run]) -> dict[str, Sequence[Run]]:
    """Returns {what classifiers are trained on: runs}: as the config says, then synthetic images alone if tested."""
    only = settings.get("classifier", {}).get("synthetic_fraction") == 1
    columns = {"synthetic_only" if only else "real+synthetic": runs}
    also = of_synthetic_only(runs)
    return columns | {"synthetic_only": also} if also else columns


def _page(columns: dict[str, Sequence[Run]], methods: Sequence[str], form: Formatter) -> list[str]:
    """Returns the parts of the text: for each column its tables, under a heading where there are several columns."""
    parts = []
    for column, runs in columns.items():
        if len(columns) > 1:
            parts.append(f"Trained on {column}:")
        parts += curve_tables(runs, methods, form) + [_CURVE_NOTE] if sizes_of(runs) else tables(runs, methods, form)
    return parts


def _statistics(runs: Sequence[Run], methods: Sequence[str]) -> dict[str, Any]:
    reductions = _error_reductions(runs, methods)
    return {
        "results": [dataclasses.asdict(result) for result in method_results(runs, methods)],
        "best_published": best_published(runs),
        "error_reduction": {method: dataclasses.asdict(value) for method, value in reductions.items()},
    }


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
        parts.append(form(_overview(results, all_shots, str_accuracy), ("accuracy, %", *columns)))
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


def _cells(result: MethodResult) -> list[object]:
    return [
        result.shots,
        METHODS[result.method].title,
        str_accuracy(result),
        _text(result.minus_real),
        _text(result.minus_plain),
        _text(result.minus_best),
        result.num_synthetic,
        f"{result.seconds:.0f}",
    ]


def _missing_text(missing: Sequence[PlannedRun], total: int) -> list[str]:
    """Lists the missing runs, a line for each method and number of shots."""
    if not missing:
        return []
    seeds: dict[str, list[str]] = {}
    for shots, seed, method, size in missing:
        images = f"{size} images a shot, " if size else ""
        seeds.setdefault(f"- {method}, {shots} shots, {images}seeds", []).append(str(seed))
    lines = [f"{start}: {', '.join(missed)}" for start, missed in seeds.items()]
    heading = f"Missing, {len(missing)} of {total} runs; differences use the seeds that both methods have:"
    return ["\n".join([heading, "", *lines])]


def _plot(runs: Sequence[Run], methods: Sequence[str], path: Path) -> Path:
    """Draws a panel for each number of shots: differences to `real`, or accuracies if the runs lack `real`."""
    results = method_results(runs, methods)
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
    return report.plot_intervals(panels, groups, label, path, reference=0.0 if has_real else None)


def _group(method: str) -> str:
    if METHODS[method].pool is None:
        return "real images only"
    return "published" if method in PUBLISHED else "not published"
