"""Writes a comparison as tables in text, markdown and JSON, as a figure and as a page."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utilgen_jax import report
from utilgen_jax.compare.curve import Formatter, curve_tables, plot_curve, sizes_of
from utilgen_jax.compare.page import About, write_page
from utilgen_jax.compare.plan import PlannedRun
from utilgen_jax.compare.statistics import Run, best_published, method_results, of_size, of_synthetic_only
from utilgen_jax.compare.tables import CURVE_NOTE, error_reductions, plot_differences, tables
from utilgen_jax.runtime.atomic_write import write_text


def write_comparison(folder: Path, settings: dict[str, Any], runs: Sequence[Run], plan: Sequence[PlannedRun]) -> None:
    """Writes `compare.md`, `compare.json`, `compare.html` and `compare.png` or `curve.png`, then prints the tables.

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
        figures = [plot_differences(columns[first], methods, folder / "compare.png")]
        figures += [plot_differences(columns[column], methods, folder / f"compare_{column}.png") for column in others]
    content["missing"] = [entry._asdict() for entry in missing]
    write_text(folder / "compare.json", json.dumps(content, indent=2) + "\n")
    command = shlex.join(["python", "-m", "utilgen_jax.compare", *sys.argv[1:]])
    page = write_page(folder, About(command, settings, _missing_lines(missing)), columns, methods)
    print(text)  # when all is on disk
    print(f"written: {folder}/compare.md, compare.json, {', '.join(figure.name for figure in figures)}")
    print(f"report: {page}")


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
        parts += curve_tables(runs, methods, form) + [CURVE_NOTE] if sizes_of(runs) else tables(runs, methods, form)
    return parts


def _statistics(runs: Sequence[Run], methods: Sequence[str]) -> dict[str, Any]:
    reductions = error_reductions(runs, methods)
    return {
        "results": [dataclasses.asdict(result) for result in method_results(runs, methods)],
        "best_published": best_published(runs),
        "error_reduction": {method: dataclasses.asdict(value) for method, value in reductions.items()},
    }


def _missing_text(missing: Sequence[PlannedRun], total: int) -> list[str]:
    """Lists the missing runs, a line for each method and number of shots."""
    if not missing:
        return []
    heading = f"Missing, {len(missing)} of {total} runs; differences use the seeds that both methods have:"
    return ["\n".join([heading, "", *(f"- {line}" for line in _missing_lines(missing))])]


def _missing_lines(missing: Sequence[PlannedRun]) -> list[str]:
    """A line for each method and number of shots."""
    seeds: dict[str, list[str]] = {}
    for shots, seed, method, size in missing:
        images = f"{size} images a shot, " if size else ""
        seeds.setdefault(f"{method}, {shots} shots, {images}seeds", []).append(str(seed))
    return [f"{start}: {', '.join(missed)}" for start, missed in seeds.items()]
