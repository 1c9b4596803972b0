"""Statistics of a comparison: means, deviations, and differences paired by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utilgen_jax import report
from utilgen_jax.compare.plan import PlannedRun
from utilgen_jax.methods import METHODS, PUBLISHED


@dataclasses.dataclass(frozen=True)
class Run:
    """Result of one run.

    Attributes:
        method: key of `methods.METHODS`.
        shots: labelled images per class.
        seed: seed of the run.
        accuracy: test accuracy in [0, 1].
        seconds: duration of all stages, shared ones included.
        num_synthetic: number of synthetic training images.
        seconds_by_stage: duration of each stage.
        images_per_shot: synthetic images for each real one; 0: the config's number of synthetic images.
        accuracy_synthetic_only: test accuracy of the classifier of the synthetic images alone, where there is one
            beside the other.
    """

    method: str
    shots: int
    seed: int
    accuracy: float
    seconds: float
    num_synthetic: int
    seconds_by_stage: dict[str, float]
    images_per_shot: int = 0
    accuracy_synthetic_only: float | None = None

    @property
    def entry(self) -> PlannedRun:
        """The run's place in the plan of a comparison."""
        return PlannedRun(self.shots, self.seed, self.method, self.images_per_shot)


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean over seeds and its 95 % interval (Student's t); low and high are None for a single seed."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        # "z" formats -0.04 as +0.0.
        return f"{self.mean:+z.1f}" + ("" if self.low is None else f" [{self.low:+z.1f}, {self.high:+z.1f}]")


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """Result of a method at one number of shots, over seeds.

    Differences are in points, over the seeds that both methods have; None without such seeds.

    Attributes:
        method: key of `methods.METHODS`.
        shots: labelled images per class.
        seeds: seeds of the finished runs.
        accuracy: mean accuracy in per cent.
        deviation: standard deviation of the accuracy in per cent; None for a single seed.
        minus_real: difference to `real`.
        minus_plain: difference to `vanilla`; None for methods without synthetic images.
        minus_best: difference to the best published method.
        num_synthetic: mean number of synthetic training images.
        seconds: mean duration of a run.
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


def run_of(summary: dict[str, Any], images_per_shot: int = 0) -> Run:
    """Extracts the result of a run from its summary, which `pipeline.run` returns; see `Run.images_per_shot`."""
    # Where there is one classifier alone, its accuracy stands in both places.
    both = summary.get("trained_on") != "synthetic_only"
    return Run(
        method=summary["method"],
        shots=summary["shots"],
        seed=summary["seed"],
        accuracy=summary["accuracy"]["final"],
        seconds=round(sum(summary["seconds"].values(), 0.0), 2),
        num_synthetic=summary["num_synthetic"],
        seconds_by_stage=summary["seconds"],
        images_per_shot=images_per_shot,
        accuracy_synthetic_only=summary.get("accuracy_synthetic_only", {}).get("final") if both else None,
    )


def of_size(runs: Sequence[Run], images_per_shot: int) -> list[Run]:
    """Returns the runs with this number of synthetic images for each real one, and those without synthetic images."""
    return [run for run in runs if run.images_per_shot == images_per_shot or METHODS[run.method].pool is None]


def of_synthetic_only(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs with the accuracies of the classifiers of synthetic images alone, where all have one.

    Methods without synthetic images keep theirs. Empty where no run has such a classifier.
    """
    own = [
        dataclasses.replace(run, accuracy=run.accuracy_synthetic_only)
        for run in runs
        if run.accuracy_synthetic_only is not None
    ]
    return own + [run for run in runs if METHODS[run.method].pool is None] if own else []


def interval(values: ArrayLike) -> Interval:
    """Returns the mean of numbers [n], one per seed, with its interval."""
    mean, low, high = report.paired_difference(values, np.zeros_like(values, dtype=np.float64))
    return Interval(mean, low, high) if np.isfinite(low) else Interval(mean, None, None)


def accuracies(runs: Sequence[Run], method: str, shots: int) -> dict[int, float]:
    """Returns the accuracies in per cent of a method at one number of shots, by ascending seed."""
    chosen = [run for run in runs if (run.method, run.shots) == (method, shots)]
    return {run.seed: 100 * run.accuracy for run in sorted(chosen, key=lambda run: run.seed)}


def difference(runs: Sequence[Run], method: str, baseline: str, shots: int) -> Interval | None:
    """Returns a method's accuracy minus a baseline's, in points, over common seeds; None without any."""
    own, other = (accuracies(runs, name, shots) for name in (method, baseline))
    common = [seed for seed in own if seed in other]
    return interval([own[seed] - other[seed] for seed in common]) if common else None


def error_reduction(runs: Sequence[Run], method: str, baseline: str) -> Interval | None:
    """Returns a method's relative error reduction over a baseline, in per cent, averaged over the numbers of shots.

    Averages within each seed and takes the interval over seeds. Skips seeds that lack a run of either method, or in
    which the baseline makes no error. Returns None without any seeds.
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
    """Returns the published method of the highest accuracy, averaged over seeds and then over numbers of shots.

    Compares only shots and seeds that all published methods have. Returns None without any.
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


def method_results(runs: Sequence[Run], methods: Sequence[str]) -> list[MethodResult]:
    """Returns a result for each number of shots and method that has runs.

    Args:
        runs: runs in any order; some may be missing.
        methods: methods in display order.
    """
    best = best_published(runs)
    with_images = {name for name, method in METHODS.items() if method.pool and name != "vanilla"}
    results = []
    for shots in sorted({run.shots for run in runs}):
        for method in methods:
            own = [run for run in runs if (run.method, run.shots) == (method, shots)]
            if not own:
                continue
            values = accuracies(runs, method, shots)
            mean, deviation = report.mean_std(list(values.values()))
            results.append(
                MethodResult(
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
    return results
