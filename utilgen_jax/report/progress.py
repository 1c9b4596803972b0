"""Progress of long stages: percent, rate, elapsed time and ETA, on a terminal line or as lines in a log."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from utilgen_jax.report.job import current_job
from utilgen_jax.runtime.compile_clock import compile_seconds

_LEAST_TOLD = 0.5  # seconds of compilation
_TERMINAL_INTERVAL = 0.2  # seconds between rewrites of the line
_line = threading.Lock()  # the terminal's, which one stage at a time rewrites


class Progress:
    """Prints the progress of a stage, like `Chrono` in google-research/big_vision; a context manager.

    The first update is excluded from the rate and the ETA, as it includes the compilation. On a terminal a single line
    is rewritten, by one stage at a time; of others that run at once the end is told. Elsewhere (a log, CI, a notebook)
    a line is printed at the end, and in a long stage every `interval` seconds. In a run (see `job`) a line begins with
    the number of the stage, and tells when all stages will be done. The last line tells how long of it JAX compiled.

    Args:
        stage: name of the stage.
        total: number of units of work.
        unit: name of a unit in the singular; the plural adds "s".
        stream: output stream; None for standard error.
        initial: units done by an earlier run; excluded from the rate.
        interval: seconds between lines where the stream is not a terminal.
        enabled: whether to print; False on all processes but the first.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str = "step",
        stream: TextIO | None = None,
        *,
        initial: int = 0,
        interval: float = 600.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval = _TERMINAL_INTERVAL if self._terminal else interval
        self._enabled = enabled
        self._clock = clock
        self._start = self._last_print = clock()
        self._now, self._done, self._initial = self._start, initial, initial
        self._warm: tuple[float, int] | None = None  # time and count at the first update
        self._metrics: dict[str, Any] = {}
        self._width = 0
        self._closed = False
        self._job, self._compiled = current_job(), compile_seconds()
        self._has_line = self._terminal and enabled and _line.acquire(blocking=False)

    @property
    def rate(self) -> float | None:
        """Units per second since the first update; None before the second update."""
        if self._warm is None or self._done <= self._warm[1] or self._now <= self._warm[0]:
            return None
        return (self._done - self._warm[1]) / (self._now - self._warm[0])

    @property
    def eta(self) -> float | None:
        """Seconds left at the current rate; None while the rate is unknown."""
        return None if self.rate is None else max(self._total - self._done, 0) / self.rate

    def update(self, done: int, **metrics: Any) -> None:
        """Records that `done` units are finished, and prints if a line is due.

        Args:
            done: units finished since the start of the stage.
            **metrics: scalars to show. JAX scalars are read only when a line is printed, which keeps dispatch
                asynchronous.
        """
        self._now, self._done, self._metrics = self._clock(), done, metrics
        if self._warm is None:
            self._warm = (self._now, done)
        if self._job is not None and self._total:
            self._job.update(done / self._total)
        if done >= self._total:
            self.close()
        elif (self._has_line or not self._terminal) and self._now - self._last_print >= self._interval:
            self._print("\r" if self._terminal else "", "" if self._terminal else "\n")

    def close(self) -> None:
        """Prints the last line, once; `update` calls it at the end of the stage."""
        if not self._closed:
            self._closed = True
            self._now = self._clock()
            self._compiled = compile_seconds() - self._compiled
            if self._job is not None and self._done >= self._total:
                share = (self._done - self._initial) / max(self._total, 1)
                self._job.learn(self._now - self._start - self._compiled, share)
            self._print("\r" if self._terminal else "", "\n")
            if self._has_line:
                _line.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()  # also after an exception, so that later output starts on a new line

    def line(self) -> str:
        """Returns the current progress line, without a line break."""
        elapsed = format_duration(self._now - self._start)
        percent = 100 * self._done // self._total if self._total else 100
        place = "" if self._job is None else self._job.place
        parts = [f"{f'[{place}] ' if place else ''}{self._stage}: {percent:3d}%"]
        parts.append(f"{self._done}/{self._total} {self._unit}s")
        if self.rate is not None:
            slow = self.rate < 1
            parts.append(f"{1 / self.rate:.3g} s/{self._unit}" if slow else f"{self.rate:.3g} {self._unit}s/s")
        if self._done >= self._total:
            compiled = self._compiled if self._closed else 0.0
            told = f", {format_duration(compiled)} of it compiling" if compiled >= _LEAST_TOLD else ""
            parts.append(f"done in {elapsed}{told}")
        else:
            parts.append(f"{elapsed} elapsed")
            if self.eta is not None:
                parts.append(f"ETA {format_duration(self.eta)}")
        left = None if self._job is None else self._job.seconds_left
        if left is not None:
            parts.append(f"all: ETA {format_duration(left)}")
        parts += [f"{name} {float(value):.4g}" for name, value in self._metrics.items()]
        return " | ".join(parts)

    def _print(self, before: str, after: str) -> None:
        self._last_print = self._now
        if not self._enabled:
            return
        line = self.line()
        if self._terminal:  # a wrapped line cannot be rewritten; blanks overwrite the rest of a longer line
            line = line[: shutil.get_terminal_size().columns - 1]
            line, self._width = line.ljust(self._width), len(line)
        self._stream.write(before + line + after)
        self._stream.flush()


def format_duration(seconds: float) -> str:
    """Formats a duration for display.

    Args:
        seconds: non-negative duration.

    Returns:
        "0.4s", "42s", "1m05s", "2h03m" or "3d04h".
    """
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m"
