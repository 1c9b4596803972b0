"""What a run leaves for people: the progress of its stages, its table, and its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from utilgen_jax import data, report
from utilgen_jax.bilevel import check_finite
from utilgen_jax.methods import METHODS

SHEETS = ("difficulty_sweep", "hard_factors")  # painted by the generator, see `difficulty_pictures`

_TITLES = {"real_only": METHODS["real"].title, "vanilla": METHODS["vanilla"].title}


@contextmanager
def log_stage(metrics: report.MetricsWriter, stage: str, total: int, every: int) -> Iterator[Callable[..., None]]:
    """Sends what a training stage tells to the progress line and to metrics.jsonl.

    Args:
      metrics: the run's writer.
      stage: its name.
      total: its steps.
      every: steps between two entries; between them nothing is read from the device. An entry is the mean since the
        one before: single steps say little where Mixup draws each one's loss.

    Yields:
      A function of (steps done, loss, further scalars by name); `first_nonfinite` among them, as `bilevel` records it,
      stops the run with the name of what broke.
    """
    since_entry: list[dict[str, jax.Array]] = []
    with report.Progress(stage, total, enabled=jax.process_index() == 0) as progress:

        def on_step(
            step: int, loss: jax.Array, first_nonfinite: Mapping[str, jax.Array] | None = None, **scalars: jax.Array
        ) -> None:
            since_entry.append({"loss": loss, **scalars})
            if step % every == 0 or step == total:
                check_finite(first_nonfinite or {})
                seen = jax.device_get(since_entry)
                since_entry.clear()
                values = {
                    name: float(np.mean([row[name] for row in seen if name in row], dtype=float)) for name in seen[-1]
                }
                metrics.write(step, stage, **values)
                progress.update(step, **values)

        yield on_step


def print_table(summary: dict[str, Any]) -> None:
    """Prints the accuracies of one run."""
    titles = _TITLES | {"final": METHODS[summary["method"]].title}
    rows = [
        [titles[row], summary["num_real"], 0 if row == "real_only" else summary["num_synthetic"], f"{accuracy:.1%}"]
        for row, accuracy in summary["accuracy"].items()
        # A method that is itself a baseline would stand there twice.
        if row != "final" or titles[row] not in _TITLES.values()
    ]
    print(f"\n{summary['dataset']}, {summary['shots'] or 'all'} labelled pictures a class, seed {summary['seed']}:\n")
    print(report.format_table(rows, ["training set", "real", "synthetic", "test accuracy"]) + "\n")


def write_results(
    workdir: Path,
    config: ConfigDict,
    summary: dict[str, Any],
    real: data.LabelledImages,
    pool: data.Pool | None,
    real_difficulty: np.ndarray,
    pool_value: dict[str, np.ndarray] | None,
) -> Path:
    """Writes the figures and the report page; returns the page's path.

    Args:
      workdir: the run's folder.
      config: of the run.
      summary: what `summary.json` holds.
      real: the shots.
      pool: the synthetic pictures, None where there are none.
      real_difficulty: of the shots, [N].
      pool_value: "difficulty", "weight" and, where a weight network gave it, "loss" of the pool's pictures, [M] each.
    """
    figures = workdir / "report"
    rows = report.read_metrics(workdir)
    drawn = {"curves": report.plot_curves(rows, figures / "curves.png")} if rows else {}
    drawn |= {name: figures / f"{name}.png" for name in SHEETS if (figures / f"{name}.png").is_file()}
    if pool_value is not None:
        drawn["difficulty"] = report.plot_difficulty(
            real_difficulty, pool_value["difficulty"], figures / "difficulty.png"
        )
        if "loss" in pool_value:
            drawn["weight_curve"] = report.plot_weight_curve(
                pool_value["loss"], pool_value["weight"], figures / "weight_curve.png"
            )
    command = "python -m " + shlex.join(["utilgen_jax.main", *sys.argv[1:]])
    class_names = real.class_names
    return report.write_report(workdir, summary, config.to_dict(), pool, real, class_names, drawn, command)
