"""What a run's summary says, as report and terminal tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACCURACY_LABELS = {"real_only": "Real images only", "vanilla": "Real + plain synthetic", "final": "Final"}
UPDATE_NOTE = "The update's own classifiers, the folds' together, each of its averaged parameters"


def accuracy_columns(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the columns of a run's table, {title: {row: accuracy}}.

    Args:
        summary: the contents of summary.json. Where classifiers of synthetic images alone were tested, they have a
            column of their own; older summaries know none.
    """
    accuracy, synthetic_only = summary["accuracy"], summary.get("accuracy_synthetic_only")
    if not synthetic_only:
        return {"test accuracy": accuracy}
    if summary.get("trained_on") == "synthetic_only":
        accuracy = {row: value for row, value in accuracy.items() if row not in synthetic_only}
    return {"with real images": accuracy, "synthetic images only": synthetic_only}


def rows_in_order(summary: Mapping[str, Any]) -> list[str]:
    """The rows of a run's table, those of before the method first."""
    accuracy = summary["accuracy"]
    order = [row for row in ACCURACY_LABELS if row in accuracy]
    return order + sorted(set(accuracy) - set(order))
