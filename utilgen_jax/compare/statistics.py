"""The numbers of a comparison: means, deviations, and differences between runs of the same seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utilgen_jax import report
from utilgen_jax.methods import METHODS, PUBLISHED


@dataclasses.dataclass(frozen=True)
class Run:
    """What a comparison knows of one run.

    Attributes:
        method: key of `methods.METHODS`.
        shots: labelled images a class.
        seed: the run's.
        accuracy: on the test images, in [0, 1].
        seconds: of all its stages; those it shares with other rows count in each of them.
        num_synthetic: synthetic images that were added to the real ones.
        seconds_by_stage: what `seconds` is the sum of.
    """

    method: str
    shots: int
    seed: int
    accuracy: float
    seconds: float
    num_synthetic: int
    seconds_by_stage: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval (Student's t); one seed has none."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        # "z" writes -0.04 as +0.0.
        return f"{self.mean:+z.1f}" + ("" if self.low is None else f" [{self.low:+z.1f}, {self.high:+z.1f}]")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        method: key of `methods.METHODS`.
        shots: labelled images a class.
        seeds: of the runs there are.
        accuracy: mean over the seeds, in per cent.
        deviation: standard deviation, likewise; None of one seed.
        minus_real: difference to the row `real` over the seeds that both have, in points; None where there is none.
        minus_plain: difference to the row `vanilla`, likewise; None for rows without synthetic images.
        minus_best: difference to the best published row, likewise.
        num_synthetic: mean of the runs' synthetic images.
        seconds: likewise.
    """

    method: str
    shots: int
    seeds: tuple[int, ...]
    accuracy: float
    deviation: float | None
    minus_real: Interval | None
    minus_plain: Interval | None
    minus_best: Interval | None
    num_synthetic: int
    seconds: float


def run_of(summary: dict[str, Any]) -> Run:
    """What a comparison takes from a run's summary, as `pipeline.run` returns it."""
    return Run(
        method=summary["method"],
        shots=summary["shots"],
        seed=summary["seed"],
        accuracy=summary["accuracy"]["final"],
        seconds=round(sum(summary["seconds"].values(), 0.0), 2),
        num_synthetic=summary["num_synthetic"],
        seconds_by_stage=summary["seconds"],
    )


def interval(values: ArrayLike) -> Interval:
    """The mean of numbers [n], one a seed, with its interval."""
    mean, low, high = report.paired_difference(values, np.zeros_like(values, dtype=np.float64))
    return Interval(mean, low, high) if np.isfinite(low) else Interval(mean, None, None)


def accuracies(runs: Sequence[Run], method: str, shots: int) -> dict[int, float]:
    """Accuracies in per cent of one method at one number of shots, by seed, which rises."""
    chosen = [run for run in runs if (run.method, run.shots) == (method, shots)]
    return {run.seed: 100 * run.accuracy for run in sorted(chosen, key=lambda run: run.seed)}


def difference(runs: Sequence[Run], method: str, baseline: str, shots: int) -> Interval | None:
    """How much better a method is than another, in points, over the seeds that both have; None where there is none."""
    own, other = (accuracies(runs, name, shots) for name in (method, baseline))
    common = [seed for seed in own if seed in other]
    return interval([own[seed] - other[seed] for seed in common]) if common else None


def error_reduction(runs: Sequence[Run], method: str, baseline: str) -> Interval | None:
    """How much less error a method makes than another, in per cent of the other's, averaged over the shot counts.

    The average is taken in each seed, the interval over seeds. Seeds in which one of the two misses a shot count, or
    the other makes no error at all, are left out; None where none are left.
    """
    errors = {(run.method, run.shots, run.seed): 1 - run.accuracy for run in runs}
    all_shots = sorted({run.shots for run in runs})
    reductions = []
    for seed in sorted({run.seed for run in runs}):
        pairs = [((method, shots, seed), (baseline, shots, seed)) for shots in all_shots]
        if all(own in errors and errors.get(other, 0) > 0 for own, other in pairs):
            reductions.append(100 * np.mean([1 - errors[own] / errors[other] for own, other in pairs]))
    return interval(reductions) if reductions else None


def best_published(runs: Sequence[Run]) -> str | None:
    """The published row of the highest accuracy, averaged over seeds and then over shot counts; None without any.

    Where rows miss runs, only what all of them have counts; where that is nothing, None.
    """
    methods = [method for method in PUBLISHED if any(run.method == method for run in runs)]
    found = {(run.method, run.shots, run.seed): run.accuracy for run in runs}
    common: dict[int, list[int]] = {}
    for shots, seed in sorted({(run.shots, run.seed) for run in runs}):
        if all((method, shots, seed) in found for method in methods):
            common.setdefault(shots, []).append(seed)

    def mean(method: str) -> float:
        return float(np.mean([np.mean([found[method, shots, seed] for seed in common[shots]]) for shots in common]))

    return max(methods, key=mean) if methods and common else None


def table_rows(runs: Sequence[Run], methods: Sequence[str]) -> list[Row]:
    """One row for each number of shots and method of which there are runs.

    Args:
        runs: all of them, in any order; some may be missing.
        methods: in the order of the rows.
    """
    best = best_published(runs)
    with_images = {name for name, method in METHODS.items() if method.generation and name != "vanilla"}
    rows = []
    for shots in sorted({run.shots for run in runs}):
        for method in methods:
            own = [run for run in runs if (run.method, run.shots) == (method, shots)]
            if not own:
                continue
            values = accuracies(runs, method, shots)
            mean, deviation = report.mean_std(list(values.values()))
            rows.append(
                Row(
                    method=method,
                    shots=shots,
                    seeds=tuple(values),
                    accuracy=mean,
                    deviation=deviation if len(values) > 1 else None,
                    minus_real=None if method == "real" else difference(runs, method, "real", shots),
                    minus_plain=difference(runs, method, "vanilla", shots) if method in with_images else None,
                    minus_best=None if best in (None, method) else difference(runs, method, best, shots),
                    num_synthetic=round(np.mean([run.num_synthetic for run in own])),
                    seconds=float(np.mean([run.seconds for run in own])),
                )
            )
    return rows
