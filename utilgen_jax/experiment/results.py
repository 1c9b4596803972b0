"""What a run leaves for people: its table and its report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.config.schema import Config, to_dict
from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.methods import METHODS
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.metrics import read_metrics
from utilgen_jax.report.page import UPDATE_NOTE, accuracy_columns, write_report
from utilgen_jax.report.plots import plot_curves, plot_difficulty, plot_weight_curve
from utilgen_jax.report.table import format_table
from utilgen_jax.report.words import word_lines
from utilgen_jax.valuation.cross_fit import PoolValues

SHEETS = ("difficulty_sweep", "hard_factors")  # see `pool.difficulty_sheets`

_TITLES = {"real_only": METHODS["real"].title, "vanilla": METHODS["vanilla"].title}


def print_table(summary: dict[str, Any]) -> None:
    """Prints the accuracies of one run."""
    titles = _TITLES | {"final": METHODS[summary["method"]].title}
    columns = accuracy_columns(summary)
    rows = [
        [titles[name], summary["num_real"], 0 if name == "real_only" else summary["num_synthetic"]]
        + [f"{column[name]:.1%}" if name in column else "–" for column in columns.values()]
        for name in summary["accuracy"]
        # A method that is itself a baseline would stand there twice.
        if name != "final" or titles[name] not in _TITLES.values()
    ]
    shots, seed = summary["shots"] or "all", summary["seed"]
    print(f"\n{summary['dataset']}, {shots} labelled images a class, seed {seed}, test accuracy:\n")
    print(format_table(rows, ["training set", "real", "synthetic", *columns]) + "\n")
    if "accuracy_of_update" in summary:
        print(f"{UPDATE_NOTE}: {summary['accuracy_of_update']:.1%}\n")
    if "words" in summary:
        print("\n".join(word_lines(summary["words"])) + "\n")


def write_results(
    workdir: Path,
    config: Config,
    summary: dict[str, Any],
    real: LabelledImages,
    pool: Pool | None,
    real_difficulty: np.ndarray,
    values: PoolValues | None,
) -> Path:
    """Writes the figures and the report page; returns the page's path.

    Args:
        workdir: the run's folder.
        config: of the run.
        summary: the contents of `summary.json`.
        real: the few-shot images.
        pool: the synthetic images; None where there are none.
        real_difficulty: of the few-shot images, [N].
        values: of the pool's images.
    """
    figures = workdir / "report"
    entries = read_metrics(workdir)
    drawn = {"curves": plot_curves(entries, figures / "curves.png")} if entries else {}
    drawn |= {name: figures / f"{name}.png" for name in SHEETS if (figures / f"{name}.png").is_file()}
    if values is not None and values.difficulty is not None:
        drawn["difficulty"] = plot_difficulty(real_difficulty, values.difficulty, figures / "difficulty.png")
    if values is not None and values.losses is not None:
        drawn["weight_curve"] = plot_weight_curve(values.losses, values.weights, figures / "weight_curve.png")
    command = "python -m " + shlex.join(["utilgen_jax.main", *sys.argv[1:]])
    return write_report(workdir, summary, to_dict(config), real, pool, drawn, command)
