"""Several classifiers, one a fold, whose updates in turn train one outer level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import optax
from flax import struct

from utilgen_jax.bilevel.state import BilevelState
from utilgen_jax.types import Params


@struct.dataclass
class FoldStates:
    """The states of all between two updates; each of their arrays stands in it once.

    Attributes:
        folds: each fold's own, without the outer level.
        outer, outer_optimizer_state: of the outer level.
    """

    folds: list[BilevelState]
    outer: dict[str, Params]
    outer_optimizer_state: optax.OptState

    @classmethod
    def start(cls, states: Sequence[BilevelState]) -> FoldStates:
        """Those before the first update, of states with equal outer levels."""
        return cls([_without_outer(state) for state in states], states[0].outer, states[0].outer_optimizer_state)

    def take(self, number: int) -> BilevelState:
        """The state of a fold, for its update."""
        return dataclasses.replace(
            self.folds[number], outer=self.outer, outer_optimizer_state=self.outer_optimizer_state
        )

    def put(self, number: int, state: BilevelState) -> FoldStates:
        """The states after that update."""
        folds = [*self.folds[:number], _without_outer(state), *self.folds[number + 1 :]]
        return FoldStates(folds, state.outer, state.outer_optimizer_state)


def _without_outer(state: BilevelState) -> BilevelState:
    return dataclasses.replace(state, outer={}, outer_optimizer_state=())
