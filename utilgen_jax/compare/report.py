"""A comparison for people and programs: its tables as text, markdown and JSON, and its figure."""

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
    Row,
    Run,
    accuracies,
    best_published,
    error_reduction,
    interval,
    table_rows,
)
from utilgen_jax.methods import METHODS, PUBLISHED
from utilgen_jax.runtime.atomic_write import write_text

Formatter = Callable[[Sequence[Sequence[object]], Sequence[str]], str]

_NOTE = (
    "Accuracies are means ± standard deviations over seeds. Differences are in points, paired by seed, with 95 % "
    "intervals;\nplain are synthetic images as they come. Seconds are of all stages of a run; those that rows share "
    "count in each."
)


def write_comparison(
    folder: Path, settings: dict[str, Any], runs: Sequence[Run], plan: Sequence[tuple[int, int, str]]
) -> None:
    """Prints the comparison, and writes it as `compare.md`, `compare.json` and `compare.png`.

    Args:
        folder: where to.
        settings: what the runs have in common, as JSON takes it; see `comparison_join.shared_settings`.
        runs: those that are done, one at least.
        plan: all runs that belong to it: (shots, seed, method), methods in the order of the rows.
    """
    methods = list(dict.fromkeys(method for _, _, method in plan))
    runs = sorted(runs, key=lambda run: (run.shots, run.seed, methods.index(run.method)))
    there = {(run.shots, run.seed, run.method) for run in runs}
    missing = [entry for entry in plan if entry not in there]
    print("\n\n".join([*tables(runs, methods, report.format_table), *_missing_text(missing, len(plan))]))
    page = [*tables(runs, methods, report.format_markdown_table), *_missing_text(missing, len(plan))]
    write_text(folder / "compare.md", "\n\n".join(page) + "\n")
    rows = table_rows(runs, methods)
    reductions = _error_reductions(runs, methods)
    content = {
        "config": settings,
        "runs": [dataclasses.asdict(run) for run in runs],
        "rows": [dataclasses.asdict(row) for row in rows],
        "best_published": best_published(runs),
        "error_reduction": {method: dataclasses.asdict(less) for method, less in reductions.items()},
        "missing": [{"method": method, "shots": shots, "seed": seed} for shots, seed, method in missing],
    }
    write_text(folder / "compare.json", json.dumps(content, indent=2) + "\n")
    _plot(runs, rows, methods, folder / "compare.png")
    print(f"written: {folder}/compare.md, compare.json, compare.png")


def tables(runs: Sequence[Run], methods: Sequence[str], form: Formatter) -> list[str]:
    """The comparison in words and numbers.

    Args:
        runs: those that are done, one at least.
        methods: in the order of the rows.
        form: makes a table's text of its rows and its headers.

    Returns:
        Of several numbers of shots first two tables with a line for each method and a column for each of them: the
        accuracies, and the differences to plain synthetic images. Then one with all that is known of each row, what it
        means, and how much less error the rows make that are not published.
    """
    best = best_published(runs)
    rows = table_rows(runs, methods)
    parts = []
    all_shots = sorted({row.shots for row in rows})
    if len(all_shots) > 1:
        columns = [f"{shots} shot" + "s" * (shots != 1) for shots in all_shots]
        parts.append(form(_overview(rows, all_shots, _accuracy), ("accuracy, %", *columns)))
        if against_plain := _overview(rows, all_shots, lambda row: _text(row.minus_plain)):
            parts.append(form(against_plain, ("minus plain", *columns)))
    parts += [form([_cells(row) for row in rows], _headers(best)), _NOTE]
    if reductions := _error_reductions(runs, methods):
        heading = f"error less than that of {best}, %, mean over shots"
        parts.append(form([[METHODS[method].title, less] for method, less in reductions.items()], ("", heading)))
    return parts


def _error_reductions(runs: Sequence[Run], methods: Sequence[str]) -> dict[str, Interval]:
    """Of each row that is not published: how much less error it makes than the best that is."""
    best = best_published(runs)
    own = [method for method in methods if method not in PUBLISHED]
    found = {method: error_reduction(runs, method, best) for method in own} if best else {}
    return {method: less for method, less in found.items() if less is not None}


def _headers(best: str | None) -> tuple[str, ...]:
    against = f"minus {best} (best published)" if best else "minus best published"
    return ("shots", "training set", "accuracy, %", "minus real", "minus plain", against, "synthetic", "seconds")


def _overview(rows: Sequence[Row], all_shots: Sequence[int], text: Callable[[Row], str]) -> list[list[object]]:
    """A line for each method of which something can be told, and what is told of it at each number of shots."""
    cells = {(row.method, row.shots): text(row) for row in rows}
    methods = dict.fromkeys(row.method for row in rows)
    lines = [(method, [cells.get((method, shots), "") for shots in all_shots]) for method in methods]
    return [[METHODS[method].title, *line] for method, line in lines if any(line)]


def _text(difference: Interval | None) -> str:
    return "" if difference is None else str(difference)


def _accuracy(row: Row) -> str:
    return f"{row.accuracy:.1f}" + ("" if row.deviation is None else f" ± {row.deviation:.1f}")


def _cells(row: Row) -> list[object]:
    return [
        row.shots,
        METHODS[row.method].title,
        _accuracy(row),
        _text(row.minus_real),
        _text(row.minus_plain),
        _text(row.minus_best),
        row.num_synthetic,
        f"{row.seconds:.0f}",
    ]


def _missing_text(missing: Sequence[tuple[int, int, str]], total: int) -> list[str]:
    """Says which runs are not there yet, a line for each row of the table."""
    if not missing:
        return []
    seeds: dict[tuple[int, str], list[str]] = {}
    for shots, seed, method in missing:
        seeds.setdefault((shots, method), []).append(str(seed))
    lines = [f"- {method}, {shots} shots, seeds: {', '.join(found)}" for (shots, method), found in seeds.items()]
    heading = f"Missing, {len(missing)} of {total} runs; differences are over the seeds that both have:"
    return ["\n".join([heading, "", *lines])]


def _plot(runs: Sequence[Run], rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """A panel for each number of shots: differences to `real` where it is there, accuracies where not."""
    has_real = any(row.minus_real is not None for row in rows)
    panels: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for row in rows:
        own, real = (list(accuracies(runs, method, row.shots).values()) for method in (row.method, "real"))
        found = row.minus_real if has_real else interval(own)
        if found is not None:
            title = f"shots: {row.shots}" + (f" (real {np.mean(real):.1f} %)" if has_real else "")
            panels.setdefault(title, {})[row.method] = (found.mean, found.low, found.high)
    groups = {method: _group(method) for method in methods if any(method in panel for panel in panels.values())}
    label = "Accuracy minus that of real images only (points)" if has_real else "Test accuracy (%)"
    report.plot_intervals(panels, groups, label, path, reference=0.0 if has_real else None)


def _group(method: str) -> str:
    if METHODS[method].generation is None:
        return "real images only"
    return "published" if method in PUBLISHED else "not published"
