import numpy as np
import pytest
import scipy.stats

from utilgen_jax.report.accuracy import bootstrap, class_changes, confusions, gains, intervals

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
BEFORE = np.array([0, 0, 1, 1, 1, 1, 0, 2])
AFTER = np.array([0, 0, 0, 2, 1, 1, 1, 0])
NAMES = ("a", "b", "c", "without test images")


def test_the_interval_is_scipys_percentile_bootstrap():
    right = np.random.default_rng(1).uniform(size=400) < 0.7
    ours = bootstrap(right.astype(int))
    theirs = scipy.stats.bootstrap((right.astype(float),), np.mean, method="percentile", rng=0).confidence_interval
    assert ours.mean == right.mean()
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.006)
    assert bootstrap(right.astype(int)) == ours  # the same numbers each time


def test_a_gain_is_on_the_same_test_images():
    predicted = {"real_only": BEFORE, "final": AFTER}
    assert intervals(LABELS, predicted)["final"].mean == 6 / 8
    assert gains(LABELS, predicted, "real_only")["final"].mean == pytest.approx(1 / 8)
    same = gains(LABELS, {"real_only": BEFORE, "final": BEFORE}, "real_only")["final"]
    assert (same.low, same.high) == (0, 0)
    assert gains(LABELS, {"final": AFTER}, "real_only") == {}


def test_the_largest_changes_come_first():
    changes = class_changes(LABELS, BEFORE, AFTER, NAMES)
    assert [(change.name, change.before, change.after, change.number) for change in changes] == [
        ("c", 1, 0, 1), ("b", 2 / 3, 1, 3), ("a", 0.5, 0.75, 4),
    ]  # fmt: skip
    found = confusions(LABELS, BEFORE, AFTER, NAMES, most=3)
    assert [(each.name, each.taken_for, each.before, each.after, each.number) for each in found] == [
        ("a", "b", 2, 0, 4), ("a", "c", 0, 1, 4), ("b", "a", 1, 0, 3),
    ]  # fmt: skip
