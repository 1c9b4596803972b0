"""What every training must stand: cut off after any step and run again, it ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.training_loop import TrainingLoop


class PowerCut(BaseException):
    """Ends a training."""


def assert_goes_on(train: Callable[[TrainingLoop], Any], folder: Path, cut_after: int) -> None:
    """Cuts a training off and runs it again.

    Args:
        train: (loop) -> what it has trained.
        folder: for its state, which is saved after every step.
        cut_after: steps in all, as they are told; the state after the last of these is not saved.
    """

    def cut(step: int, loss: jax.Array, **scalars: Any) -> None:
        if step == cut_after:
            raise PowerCut

    def saved() -> SavedState:
        return SavedState(StateFolder(folder / "result.partial", Saving(every_seconds=0.0)))

    whole = train(TrainingLoop())
    with pytest.raises(PowerCut):
        train(TrainingLoop(cut, saved()))
    seen: list[int] = []
    again = train(TrainingLoop(lambda step, loss, **scalars: seen.append(step), saved()))
    assert seen[0] == cut_after and seen == sorted(seen)
    assert_same_bits(again, whole)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Compares two pytrees, with dtypes and structure."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)
