"""The data-efficiency curve of a comparison: accuracy against the number of synthetic images for each real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utilgen_jax import report
from utilgen_jax.compare.statistics import MethodResult, Run, method_results, of_size
from utilgen_jax.methods import METHODS

Formatter = Callable[[Sequence[Sequence[object]], Sequence[str]], str]


def sizes_of(runs: Sequence[Run]) -> list[int]:
    """Returns the numbers of synthetic images for each real one, ascending; empty where they are the config's."""
    return sorted({run.images_per_shot for run in runs} - {0})


def curve_tables(runs: Sequence[Run], methods: Sequence[str], form: Formatter) -> list[str]:
    """Formats accuracies and differences to `vanilla` as tables of methods by number of synthetic images.

    Args:
        runs: finished runs, at least one with `images_per_shot`.
        methods: methods in display order.
        form: formats a table from its rows and headers.

    Returns:
        For each number of shots the accuracies, and, with `vanilla`, the differences.
    """
    sizes, results = sizes_of(runs), _results(runs, methods)
    parts = []
    for shots in sorted({result.shots for by_method in results.values() for result in by_method.values()}):
        title = f"{shots} shot" + "s" * (shots != 1)
        headers = [f"{size} a real image" for size in sizes]
        parts.append(form(_rows(results, methods, shots, str_accuracy), (f"{title}, accuracy, %", *headers)))
        against = _rows(results, methods, shots, lambda result: str(result.minus_plain or ""))
        if any(any(row[1:]) for row in against):
            parts.append(form([row for row in against if any(row[1:])], (f"{title}, minus plain", *headers)))
    return parts


def plot_curve(columns: Mapping[str, Sequence[Run]], methods: Sequence[str], path: Path) -> Path:
    """Draws the curve, a panel for each number of shots and column.

    Args:
        columns: {what the classifiers are trained on: finished runs}.
        methods: methods in display order.
        path: the file to write.
    """
    panels: dict[str, dict[str, dict[int, tuple[float, float | None]]]] = {}
    references: dict[str, dict[str, float]] = {}
    for column, runs in columns.items():
        for size, by_method in _results(runs, methods).items():
            for result in by_method.values():
                title = f"{result.shots} shot{'s' * (result.shots != 1)}, {column}"
                if METHODS[result.method].pool is None:
                    references.setdefault(title, {})[result.method] = result.accuracy
                else:
                    line = panels.setdefault(title, {}).setdefault(result.method, {})
                    line[size] = (result.accuracy, result.deviation)
    labels = ("Synthetic images for each real image", "Test accuracy (%)")
    return report.plot_data_efficiency(panels, references, labels, path)


def str_accuracy(result: MethodResult) -> str:
    """Formats an accuracy with its standard deviation over seeds, if there is one."""
    return f"{result.accuracy:.1f}" + ("" if result.deviation is None else f" ± {result.deviation:.1f}")


def _results(runs: Sequence[Run], methods: Sequence[str]) -> dict[int, dict[tuple[int, str], MethodResult]]:
    """The results by size, then by shots and method; methods without synthetic images are the same at each size."""
    return {
        size: {(result.shots, result.method): result for result in method_results(of_size(runs, size), methods)}
        for size in sizes_of(runs)
    }


def _rows(
    results: dict[int, dict[tuple[int, str], MethodResult]],
    methods: Sequence[str],
    shots: int,
    text: Callable[[MethodResult], str],
) -> list[list[object]]:
    """A row of texts by size for each method with a result."""
    rows: list[list[object]] = []
    for method in methods:
        cells = [text(found[shots, method]) if (shots, method) in found else "" for found in results.values()]
        if any((shots, method) in found for found in results.values()):
            rows.append([METHODS[method].title, *cells])
    return rows
