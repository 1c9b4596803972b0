"""The tables of a comparison, and the figure of its differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utilgen_jax import report
from utilgen_jax.compare.curve import Formatter, str_accuracy
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

CURVE_NOTE = (
    "Accuracies are means ± standard deviations over seeds. Differences are in points, paired by seed, with 95 % "
    "intervals;\nplain is `vanilla`."
)
_NOTE = f"{CURVE_NOTE} Seconds are the sum over the stages of a run; stages that methods share count in each."


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
    if reductions := error_reductions(runs, methods):
        heading = f"error reduction over {best}, %, mean over shots"
        parts.append(form([[METHODS[method].title, value] for method, value in reductions.items()], ("", heading)))
    return parts


def error_reductions(runs: Sequence[Run], methods: Sequence[str]) -> dict[str, Interval]:
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


def plot_differences(runs: Sequence[Run], methods: Sequence[str], path: Path) -> Path:
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
