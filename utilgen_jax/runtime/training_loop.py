"""The loop of every training: it tells of each step, keeps the state, and goes on where an earlier run was cut off."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from utilgen_jax.runtime.distributed import Meetings, is_any_terminated
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.termination import Terminated
from utilgen_jax.runtime.threads import check_stopped
from utilgen_jax.types import OnStep

# Steps that may be under way when the next one is started. Where one CPU is several devices, XLA waits for ever once a
# device has 32 programs before it: they need the threads that wait for it.
_STEPS_AHEAD = 2

State = TypeVar("State")

# (state, steps done) -> (state after one more, scalars on the device by name, "loss" among them)
Update = Callable[[State, int], tuple[State, dict[str, Any]]]


def tell_nothing(step: int, loss: jax.Array, **scalars: Any) -> None:
    """The `on_step` of a training that is not watched."""


@dataclasses.dataclass(frozen=True)
class TrainingLoop:
    """Runs the steps of a training.

    Attributes:
        on_step: called after each step with (steps done, loss on the device, **more scalars).
        saved: keeps the state; None: it is not kept.
    """

    on_step: OnStep = tell_nothing
    saved: SavedState | None = None

    def run(
        self, state: State, steps: int, update: Update[State], is_over: Callable[[State], bool] = lambda state: False
    ) -> State:
        """Runs what is left of the steps; not a scan, see `runtime.loops`.

        Args:
            state: before the first step, a pytree: all that later steps depend on but their number, and what does not
                change. Its memory is taken over where that of an update's argument is.
            steps: in all.
            update: one step.
            is_over: ends the training before its last step.

        Returns:
            The state after the last step.

        Raises:
            Terminated: SIGTERM has come; the state is saved.
        """
        step = 0
        if self.saved is not None:
            step, state = self.saved.restored(state)
            if 0 < step < steps and jax.process_index() == 0:
                print(f"{self.saved.title}: goes on after step {step} of {steps}", file=sys.stderr)
        meetings = Meetings()
        under_way: deque[jax.Array] = deque()  # their losses
        while step < steps and not is_over(state):
            state, scalars = update(state, step)
            step += 1
            loss = scalars.pop("loss")
            under_way.append(loss)
            self.on_step(step, loss, **scalars)
            if len(under_way) > _STEPS_AHEAD:
                jax.block_until_ready(under_way.popleft())
            if meetings.is_one(step):
                is_last = is_any_terminated()
                if self.saved is not None:
                    self.saved.keep(step, state, now=is_last)
                if is_last:
                    raise Terminated
            check_stopped()
        if self.saved is not None:
            self.saved.finish(step, state)
        return state

    def part(self, name: str, done: int = 0) -> TrainingLoop:
        """The loop of one of several trainings.

        Args:
            name: among them; letters, digits and underscores.
            done: steps of those before it, from which `on_step` counts.
        """

        def on_step(step: int, loss: jax.Array, **scalars: Any) -> None:
            self.on_step(done + step, loss, **scalars)

        return TrainingLoop(on_step, None if self.saved is None else self.saved.part(name))
