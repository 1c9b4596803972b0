"""The regime map: what every method brings in each of several settings, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utilgen_jax import report
from utilgen_jax.compare.curve import Formatter
from utilgen_jax.compare.statistics import Run, accuracies, difference, of_synthetic_only
from utilgen_jax.methods import METHODS
from utilgen_jax.runtime.atomic_write import write_text

NOTE = (
    "Plain images: accuracy in %, mean over seeds. The others: minus plain images, in points, paired by seed, with "
    "95 % intervals."
)


def write_regimes(folder: Path, runs: Mapping[str, Sequence[Run]], methods: Sequence[str]) -> None:
    """Writes the map as `regimes.md` and prints it.

    Args:
        folder: for the file.
        runs: of each regime, finished ones.
        methods: in display order.
    """
    text = regime_table(runs, methods, report.format_markdown_table)
    write_text(folder / "regimes.md", f"{text}\n\n{NOTE}\n")
    print(f"\n{regime_table(runs, methods, report.format_table)}\n\n{NOTE}")
    print(f"written: {folder}/regimes.md")


def regime_table(runs: Mapping[str, Sequence[Run]], methods: Sequence[str], form: Formatter) -> str:
    """Formats the map: a row a regime and number of shots, a column a method.

    Where classifiers of synthetic images alone were tested too, they have a row of their own.

    Args:
        runs: of each regime, finished ones.
        methods: in display order.
        form: formats a table from its rows and headers.
    """
    rows = []
    for regime, found in runs.items():
        all_shots = sorted({run.shots for run in found})
        for shots in all_shots:
            title = f"{regime}, {shots} shots" if len(all_shots) > 1 else regime
            rows.append([title, *(_cell(found, shots, method) for method in methods)])
            if only := of_synthetic_only(found):
                rows.append([f"{title}, synthetic only", *(_cell(only, shots, method) for method in methods)])
    return form(rows, ("", *(METHODS[method].title.removeprefix("+ ") for method in methods)))


def _cell(runs: Sequence[Run], shots: int, method: str) -> str:
    if method == "vanilla":
        values = list(accuracies(runs, method, shots).values())
        return f"{report.mean_std(values)[0]:.1f}" if values else ""
    found = difference(runs, method, "vanilla", shots)
    return "" if found is None else str(found)
