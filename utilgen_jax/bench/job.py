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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config.schema import from_flat, from_json, to_json
from utilgen_jax.config.validation import checked
from utilgen_jax.errors import InputError
from utilgen_jax.report.table import format_table
from utilgen_jax.runtime.compile_clock import seconds_by_kind

COLUMNS = ("seconds", "trace", "compile", "python", "wait")
OUTSIDE = "between the stages"


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
        """Wraps the computation of stages."""
        from utilgen_jax.experiment.stages import StageCache

        compute = StageCache._compute

        def timed(cache: StageCache, name: str, *arguments: Any) -> Any:
            with self.stage(name):
                return compute(cache, name, *arguments)

        StageCache._compute = timed  # type: ignore[assignment, method-assign]

    def stage(self, name: str) -> _Stage:
        """A context in which a stage is computed; one within another is taken off it."""
        return _Stage(self, name)


class _Stage:
    """The times of one stage while it is computed."""

    def __init__(self, times: StageTimes, name: str) -> None:
        self._times, self._name = times, name
        self.inner = dict.fromkeys(_clocks(), 0.0)  # seconds of the stages within

    def __enter__(self) -> None:
        local = self._times._local
        local.stack = [*getattr(local, "stack", []), self]
        self._start = _clocks()

    def __exit__(self, *exception: Any) -> None:
        taken = {name: now - self._start[name] for name, now in _clocks().items()}
        stack = self._times._local.stack
        stack.pop()
        if stack:
            stack[-1].inner = {name: seconds + taken[name] for name, seconds in stack[-1].inner.items()}
        own = {name: seconds - self.inner[name] for name, seconds in taken.items()}
        compiling = own["trace"] + own["compile"]
        own["python"] = max(min(own["cpu"], own["seconds"]) - compiling, 0.0)
        own["wait"] = max(own["seconds"] - compiling - own["python"], 0.0)
        self._times.stages[self._name] = {name: round(own[name], 2) for name in COLUMNS}


def _clocks() -> dict[str, float]:
    """Seconds since some moment: of the clock, of this thread on a CPU, of its tracing and of its compilation."""
    return {"seconds": time.monotonic(), "cpu": time.thread_time()} | seconds_by_kind()


def _run_timed(folder: Path, start: float) -> None:
    """Makes the run of a folder's config and writes its times beside it."""
    from utilgen_jax import pipeline

    imported = time.monotonic()
    times = StageTimes()
    times.install()
    seconds_by_kind()  # counts from here
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
