"""Where the time of a run goes: each stage's tracing, compilation, Python, and the wait for the device.

  python -m utilgen_jax.bench job --config=digits:runlocal
  python -m utilgen_jax.bench job --cache=FOLDER               # again: what a second start takes

The run is made in a folder that is removed, in a process of its own; --cache keeps its compiled programs; without it
all is compiled. Stages that run at once each count their whole time. On CPU, small programs run in the thread that
calls them: they count as Python. Nothing is compared: --against, --repeats and --warmup have no effect here.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config.schema import from_flat, from_json, to_json
from utilgen_jax.config.validation import checked
from utilgen_jax.errors import InputError
from utilgen_jax.report.table import format_table

COLUMNS = ("seconds", "trace", "compile", "python", "wait")
OUTSIDE = "between the stages"
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}
Interval = tuple[float, float]


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("config", "configs/digits.py", "of the run; FILE:VARIANT", flag_values=values)
    flags.DEFINE_string("cache", "", "folder for compiled programs; empty: none are kept", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    return [] if settings["against"] == "none" else ["--against: nothing is compared here"]


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Makes the run in a process of its own.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.

    Raises:
        InputError: the run failed.
    """
    cache = str(Path(settings["cache"]).absolute()) if settings["cache"] else ""
    keeping = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(to_json(settings["config"]), encoding="utf-8")
        start = time.monotonic()
        command = [sys.executable, "-m", "utilgen_jax.bench.job", folder, str(start)]
        environ = os.environ | (keeping if cache else {"JAX_ENABLE_COMPILATION_CACHE": "false"})
        if status := subprocess.run(command, env=environ, stdout=2).returncode:
            raise InputError(f"the run failed with status {status}, see above")
        figures = json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))
        figures["seconds"] = round(time.monotonic() - start, 1)
    rows = [[name, *(f"{row[column]:.1f}" for column in COLUMNS)] for name, row in figures["stages"].items()]
    sums = [sum(row[column] for row in figures["stages"].values()) for column in COLUMNS]
    table = format_table([*rows, ["sum", *(f"{each:.1f}" for each in sums)]], ("stage", *COLUMNS))
    whole = "{seconds} s in all, {import} s of them imports; {cpu} s of the CPU; at most {memory} MiB".format(**figures)
    return f"{table}\n{whole}", figures


class StageTimes:
    """Collects what a run's stages do, each thread's by itself; install it before the run.

    Attributes:
        stages: by name, its seconds by the names of `COLUMNS`; filled as stages end.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._local = threading.local()

    def install(self) -> None:
        """Listens to JAX, and wraps the computation of stages."""
        import jax

        from utilgen_jax.experiment.stages import StageCache

        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        compute = StageCache._compute

        def timed(cache: StageCache, name: str, *arguments: Any) -> Any:
            with self.stage(name):
                return compute(cache, name, *arguments)

        StageCache._compute = timed  # type: ignore[assignment, method-assign]

    def stage(self, name: str) -> _Stage:
        """A context in which a stage is computed; one within another is taken off it."""
        return _Stage(self, name)

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        stack = getattr(self._local, "stack", [])
        if event in _EVENTS and stack:
            now = time.monotonic()
            stack[-1].intervals[_EVENTS[event]].append((now - duration_secs, now))


class _Stage:
    """The times of one stage while it is computed."""

    def __init__(self, times: StageTimes, name: str) -> None:
        self._times, self._name = times, name
        self.intervals: dict[str, list[Interval]] = defaultdict(list)
        self.inner: dict[str, float] = defaultdict(float)  # seconds of the stages within

    def __enter__(self) -> None:
        local = self._times._local
        local.stack = [*getattr(local, "stack", []), self]
        self._start, self._cpu = time.monotonic(), time.thread_time()

    def __exit__(self, *exception: Any) -> None:
        seconds, cpu = time.monotonic() - self._start, time.thread_time() - self._cpu
        compile = total_length(self.intervals["compile"])
        trace = total_length(self.intervals["compile"] + self.intervals["trace"]) - compile
        stack = self._times._local.stack
        stack.pop()
        if stack:
            stack[-1].inner["seconds"] += seconds
            stack[-1].inner["cpu"] += cpu
        own, own_cpu = seconds - self.inner["seconds"], cpu - self.inner["cpu"]
        python = max(min(own_cpu, own) - trace - compile, 0.0)
        found = (own, trace, compile, python, max(own - trace - compile - python, 0.0))
        self._times.stages[self._name] = {name: round(each, 2) for name, each in zip(COLUMNS, found, strict=True)}


def total_length(intervals: Iterable[Interval]) -> float:
    """The length of a union of intervals: a program that is traced within another one counts once."""
    total, reached = 0.0, -float("inf")
    for begin, end in sorted(intervals):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def _run_timed(folder: Path, start: float) -> None:
    """Makes the run of a folder's config and writes its times beside it."""
    from utilgen_jax import pipeline

    imported = time.monotonic()
    times = StageTimes()
    times.install()
    config = checked(from_flat(from_json((folder / "config.json").read_text(encoding="utf-8"))))
    with times.stage(OUTSIDE):
        pipeline.run(config, folder / "run")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "import": round(imported - start, 1),
        "cpu": round(usage.ru_utime + usage.ru_stime, 1),
        "memory": round(usage.ru_maxrss / 2**10),
        "stages": times.stages,
    }
    (folder / "times.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    _run_timed(Path(sys.argv[1]), float(sys.argv[2]))
