"""Did it help? Accuracies with their intervals over the test images, class by class, and what was confused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

_SAMPLES = 4000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over the test images with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class ClassChange:
    """The accuracy on one class before and after, in [0, 1], and the number of its test images."""

    name: str
    before: float
    after: float
    number: int


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How many of a class's test images are taken for another class, before and after."""

    name: str
    taken_for: str
    before: int
    after: int
    number: int


def bootstrap(values: np.ndarray) -> Interval:
    """The mean of a number for each test image, and its percentile interval over resampled test images.

    Args:
        values: [T], of few different values: 0 and 1 for an accuracy, -1, 0 and 1 for a difference of two.
    """
    different, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    # To resample T images with replacement is to draw how often each of the values comes.
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), _SAMPLES)
    low, high = np.quantile(drawn @ different / len(values), [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def intervals(labels: np.ndarray, predicted: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """The accuracy of each row, with its interval."""
    return {row: bootstrap(classes == labels) for row, classes in predicted.items()}


def gains(labels: np.ndarray, predicted: Mapping[str, np.ndarray], baseline: str) -> dict[str, Interval]:
    """The accuracy of each row minus that of the baseline's, on the same resampled images."""
    if baseline not in predicted:
        return {}
    right = {row: (classes == labels).astype(int) for row, classes in predicted.items()}
    return {row: bootstrap(own - right[baseline]) for row, own in right.items() if row != baseline}


def class_changes(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, class_names: tuple[str, ...]
) -> list[ClassChange]:
    """The accuracy on each class that has test images, the largest change first."""
    found = []
    for label, name in enumerate(class_names):
        own = labels == label
        if own.any():
            first, second = (float((predicted[own] == label).mean()) for predicted in (before, after))
            found.append(ClassChange(name, first, second, int(own.sum())))
    return sorted(found, key=lambda change: -abs(change.after - change.before))


def confusions(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, class_names: tuple[str, ...], most: int
) -> list[Confusion]:
    """The pairs of classes whose confusion changed by the most images, the largest change first."""
    num_classes = len(class_names)
    pairs = {}
    for name, predicted in (("before", before), ("after", after)):
        wrong = predicted != labels
        codes, counts = np.unique(labels[wrong].astype(np.int64) * num_classes + predicted[wrong], return_counts=True)
        pairs[name] = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    of_class = np.bincount(labels, minlength=num_classes)
    found = [
        Confusion(
            class_names[code // num_classes],
            class_names[code % num_classes],
            pairs["before"].get(code, 0),
            pairs["after"].get(code, 0),
            int(of_class[code // num_classes]),
        )
        for code in sorted({*pairs["before"], *pairs["after"]})
    ]
    changed = [confusion for confusion in found if confusion.before != confusion.after]
    return sorted(changed, key=lambda confusion: -abs(confusion.after - confusion.before))[:most]
