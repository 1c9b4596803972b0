"""Progress of a whole run: which of its stages is under way, and how long all that are left will take."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from utilgen_jax.runtime.compile_clock import compile_seconds


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage costs, as far as it is known before.

    Attributes:
        passes: of images through the classifier, a training step counted as three.
        calls: of the UNet for an image, a training step counted as three.
    """

    passes: float = 0.0
    calls: float = 0.0


class Job:
    """The stages of a run. Threads may work on different ones.

    Args:
        costs: of the stages that are expected, in their order; others may come, and are counted then.
    """

    def __init__(self, costs: Mapping[str, Cost]) -> None:
        self._costs = dict(costs)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._done: set[str] = set()
        self._fractions: dict[str, float] = {}
        # Seconds without compilation, and what was done in them: of stages of one kind of work alone.
        self._spent = {"passes": [0.0, 0.0], "calls": [0.0, 0.0]}

    def skip(self, stage: str) -> None:
        """Notes a stage that was done before."""
        with self._lock:
            self._costs.setdefault(stage, Cost())
            self._done.add(stage)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """The time in which this thread computes a stage; one within another is counted by itself."""
        with self._lock:
            self._costs.setdefault(stage, Cost())
        outer = getattr(self._local, "stage", "")
        self._local.stage = stage
        try:
            yield
            with self._lock:
                self._done.add(stage)
                self._fractions.pop(stage, None)
        finally:
            self._local.stage = outer

    def update(self, fraction: float) -> None:
        """Notes how far this thread's stage is."""
        with self._lock:
            self._fractions[getattr(self._local, "stage", "")] = fraction

    def learn(self, seconds: float, share: float) -> None:
        """Notes how long a share of this thread's stage took, compilation left out."""
        with self._lock:
            cost = self._costs.get(getattr(self._local, "stage", ""), Cost())
            for kind, other in (("passes", cost.calls), ("calls", cost.passes)):
                amount = share * getattr(cost, kind)
                if amount and not other and seconds > 0:
                    spent = self._spent[kind]
                    spent[0], spent[1] = spent[0] + seconds, spent[1] + amount

    @property
    def place(self) -> str:
        """'3/19': the number of this thread's stage, of all."""
        with self._lock:
            names = list(self._costs)
            stage = getattr(self._local, "stage", "")
            return f"{names.index(stage) + 1}/{len(names)}" if stage in self._costs else ""

    @property
    def seconds_left(self) -> float | None:
        """Of all stages that are left, by what those before have taken; None where that is not known yet."""
        with self._lock:
            total = 0.0
            for stage, cost in self._costs.items():
                share = 0.0 if stage in self._done else 1 - self._fractions.get(stage, 0.0)
                for kind, (seconds, amount) in self._spent.items():
                    work = share * getattr(cost, kind)
                    if work and not amount:
                        return None
                    total += work * seconds / amount if work else 0.0
            return total


_job: Job | None = None


def current_job() -> Job | None:
    """The run that is under way in this process."""
    return _job


@contextmanager
def job_progress(costs: Mapping[str, Cost]) -> Iterator[Job]:
    """A run, whose stages' progress lines tell of it too; see `Job`."""
    global _job
    outer, _job = _job, Job(costs)
    compile_seconds()  # counts from here
    try:
        yield _job
    finally:
        _job = outer
