"""Times several implementations of the same computation in turns, so that the noise of the machine hits all alike."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from utilgen_jax.report.progress import Progress

_SHORTEST_TIMING = 0.1  # seconds; of less, the clock and the dispatch would be a part


@dataclasses.dataclass(frozen=True)
class Work:
    """One implementation, ready to run.

    Attributes:
        start: begins a run and returns what it computes, perhaps before it is computed.
        wait: returns when that is computed.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]

    def run(self, number: int = 1) -> float:
        """Runs `number` times, waits only after the last, and returns the seconds that all took."""
        begin = time.perf_counter()
        for _ in range(number):
            result = self.start()
        self.wait(result)
        return time.perf_counter() - begin


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One implementation of a pass at one batch size, compiled and run once.

    Attributes:
        work: what is timed.
        outputs: named arrays of the first run, to compare with the other side's.
        first_seconds: of the first run, with tracing and compiling.
        flops: matrix products and convolutions of one run, without what gradient checkpointing computes again.
        compiled_flops: see `costs.compiled_flops`; None where the side cannot tell.
        peak_bytes: see `costs.peak_bytes`; None where the side cannot tell.
    """

    work: Work
    outputs: Mapping[str, np.ndarray]
    first_seconds: float
    flops: float
    compiled_flops: float | None = None
    peak_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one run, repeated, in the order in which they were measured."""

    seconds: tuple[float, ...]

    @property
    def minimum(self) -> float:
        """What the machine can do when nothing disturbs it."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """What a run takes as a rule."""
        return statistics.median(self.seconds)


def time_in_turns(
    sides: Mapping[str, Work], repeats: int, warmup: int = 1, progress: Progress | None = None
) -> dict[str, Timing]:
    """Times all sides, one after the other in each repeat.

    Args:
        sides: by name; each has run once, so that nothing compiles any more.
        repeats: timings of each side. A short run is repeated within one until it takes 0.1 s.
        warmup: untimed runs of each side before.
        progress: told after each timing; its total is `repeats` times the number of sides.

    Returns:
        Timings by name.
    """
    number = {}
    for name, work in sides.items():
        for _ in range(warmup):
            work.run()
        number[name] = math.ceil(max(1.0, _SHORTEST_TIMING / work.run()))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats * len(sides)):
        name = list(sides)[turn % len(sides)]
        seconds[name].append(sides[name].run(number[name]) / number[name])
        if progress is not None:
            progress.update(turn + 1)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def times_as_long(one: Timing, other: Timing) -> float:
    """How many times as long `one` takes as `other`: the median over the turns of both."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


def relative_errors(outputs: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> dict[str, float]:
    """max |a - b| / max |b| of each named output."""
    return {
        name: float(np.abs(outputs[name].astype(np.float64) - other).max() / np.abs(other).max())
        for name, other in others.items()
    }
