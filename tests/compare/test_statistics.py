"""Statistics of a comparison on made-up runs, against SciPy and explicit sums."""

import numpy as np
import pytest
import scipy.stats

from utilgen_jax.compare.plan import PlannedRun
from utilgen_jax.compare.statistics import (
    Interval,
    Run,
    best_published,
    difference,
    error_reduction,
    method_results,
    of_size,
    of_synthetic_only,
    run_of,
)


def made_up(accuracies: dict[str, dict[int, list[float | None]]]) -> list[Run]:
    """Runs of {method: {shots: accuracies by seed}}, last ones first; None is a missing run."""
    runs = [
        Run(method, shots, seed, value, 3.0 + seed, 0 if method == "real" else 1000, {"a": 3.0, "b": float(seed)})
        for method, by_shots in accuracies.items()
        for shots, values in by_shots.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    return runs[::-1]


def results_of(accuracies, methods=("real", "vanilla", "saflex")):
    return {(result.method, result.shots): result for result in method_results(made_up(accuracies), methods)}


def test_differences_are_paired_with_a_t_interval():
    values = {"real": [0.70, 0.80, 0.75], "vanilla": [0.85, 0.88, 0.90], "saflex": [0.86, 0.88, 0.93]}
    results = results_of({method: {2: numbers} for method, numbers in values.items()})
    assert list(results) == [("real", 2), ("vanilla", 2), ("saflex", 2)]
    real, vanilla, saflex = results.values()
    assert real.accuracy == pytest.approx(75) and real.deviation == pytest.approx(np.std([70, 80, 75], ddof=1))
    compared = (
        (saflex, "real", saflex.minus_real),
        (saflex, "vanilla", saflex.minus_plain),
        (vanilla, "saflex", vanilla.minus_best),
    )
    for result, other, found in compared:
        expected = scipy.stats.ttest_rel(values[result.method], values[other]).confidence_interval(0.95)
        mean = np.mean(np.subtract(values[result.method], values[other]))
        np.testing.assert_allclose([found.mean, found.low, found.high], 100 * np.array([mean, *expected]), rtol=1e-9)
    assert real.minus_real is None and saflex.minus_best is None
    assert real.minus_plain is None and vanilla.minus_plain is None
    assert real.num_synthetic == 0 and saflex.num_synthetic == 1000 and saflex.seconds == 4 and real.seeds == (0, 1, 2)


def test_a_summary_becomes_a_run():
    summary = {"method": "joint", "shots": 2, "seed": 3, "accuracy": {"final": 0.5}, "num_synthetic": 9, "seconds": {}}
    # Of before there were classifiers of synthetic images alone.
    assert run_of(summary).accuracy_synthetic_only is None
    summary |= {"accuracy_synthetic_only": {"vanilla": 0.25, "final": 0.375}, "trained_on": "real+synthetic"}
    assert run_of(summary, 5).accuracy_synthetic_only == 0.375
    assert run_of(summary, 5).entry == PlannedRun(2, 3, "joint", 5)
    # A single classifier has a single accuracy.
    assert run_of(summary | {"trained_on": "synthetic_only"}).accuracy_synthetic_only is None


def test_runs_are_parted_by_size_and_by_what_the_classifier_saw():
    runs = [Run("real", 2, 0, 0.5, 1.0, 0, {})]
    runs += [Run("vanilla", 2, 0, 0.6, 1.0, 10, {}, size, only) for size, only in ((1, 0.1), (5, 0.2), (0, None))]
    assert of_size(runs, 5) == [runs[0], runs[2]] and of_size(runs, 0) == [runs[0], runs[3]]
    only = of_synthetic_only(runs)
    assert {(run.method, run.accuracy) for run in only} == {("real", 0.5), ("vanilla", 0.1), ("vanilla", 0.2)}
    assert of_synthetic_only([runs[0], runs[3]]) == []


def test_one_seed_has_no_interval():
    results = results_of({"real": {2: [0.7]}, "vanilla": {2: [0.9]}})
    assert results["real", 2].deviation is None and results["real", 2].minus_best is None
    assert results["vanilla", 2].minus_real == Interval(pytest.approx(20), None, None)
    assert str(Interval(20.04, None, None)) == "+20.0" and str(Interval(0.12, -1, 1.2)) == "+0.1 [-1.0, +1.2]"
    assert str(Interval(-0.04, -0.06, 0.0)) == "+0.0 [-0.1, +0.0]"


def test_missing_runs_are_left_out_in_pairs():
    runs = {"real": {1: [0.5, 0.6, 0.7], 2: [0.8]}, "vanilla": {1: [None, 0.7, 0.9]}, "saflex": {1: [0.9, None, None]}}
    results = results_of(runs)
    assert list(results) == [("real", 1), ("vanilla", 1), ("saflex", 1), ("real", 2)]
    assert results["vanilla", 1].seeds == (1, 2) and results["vanilla", 1].minus_real.mean == pytest.approx(15)
    assert results["vanilla", 1].minus_best is None
    assert difference(made_up(runs), "vanilla", "real", 2) is None


def test_best_published_method_averages_over_numbers_of_shots():
    runs = {"joint": {1: [0.99]}, "captions": {1: [0.6, 0.6], 2: [0.9]}, "saflex": {1: [0.5, 0.5], 2: [0.99]}}
    assert best_published(made_up(runs)) == "captions"
    # The mean over numbers of shots, not over runs; and only common runs count.
    runs["saflex"] = {1: [0.55, 0.55], 2: [0.96]}
    assert best_published(made_up(runs)) == "saflex"
    runs["captions"] = {1: [0.6, 0.6], 2: [None, 0.99]}
    assert best_published(made_up(runs)) == "captions"
    assert best_published(made_up({"real": {1: [0.5]}, "vanilla": {1: [0.9]}})) is None
    assert best_published(made_up({"captions": {1: [0.5]}, "saflex": {1: [None, 0.9]}})) is None


def test_error_reduction_averages_over_shots_then_over_seeds():
    runs = {
        "joint": {1: [0.7, 0.8, None], 2: [0.94, 0.9, 0.9]},
        "saflex": {1: [0.6, 0.6, 0.6], 2: [0.92, 0.9, 0.9]},
    }
    found = error_reduction(made_up(runs), "joint", "saflex")
    # Seed 0: 25 % at both; seed 1: 50 and 0 %; seed 2 lacks a run.
    np.testing.assert_allclose([found.mean, found.low, found.high], [25, 25, 25], rtol=1e-9)
    runs["joint"][2][1] = 0.96
    found = error_reduction(made_up(runs), "joint", "saflex")
    expected = scipy.stats.t.interval(0.95, 1, 40, scipy.stats.sem([25, 55]))
    np.testing.assert_allclose([found.mean, found.low, found.high], [40, *expected], rtol=1e-9)
    assert error_reduction(made_up({"joint": {1: [1.0]}, "saflex": {1: [1.0]}}), "joint", "saflex") is None
