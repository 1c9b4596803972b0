"""Ends a job at random moments, runs it again each time, and compares what it leaves with an uninterrupted run.

  python -m tests.kill --times=30 --method=joint
  python -m tests.kill --times=10 --signal=TERM --config=digits:runlocal,method=utilgen
  python -m tests.kill --times=10 --config=my_config.py --config.classifier.steps=1000 --folder=/tmp/kill

A job that ends by itself is compared bit for bit: its summary, the results of its stages, and its pools; and it leaves
no file that the uninterrupted run does not leave. Then the next job begins, until all of the --times are done. Other
arguments go to the job. Exit status: 0 all are the same, 1 one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
_LONGEST_LEAVE = 20.0  # seconds from SIGTERM to the end
# What differs between any two runs: hours, seconds, and what is drawn of them.
_OF_ITS_TIME = ("metrics.jsonl", "tensorboard", "report", "log.txt")


class Interruption(NamedTuple):
    """The end of a job.

    Attributes:
        after: seconds from its start.
        last_line: of its log.
        problems: that it shows.
    """

    after: float
    last_line: str
    problems: list[str]


def run_job(job: Sequence[str], workdir: Path) -> subprocess.Popen:
    """Starts the main job; its log is in the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "utilgen_jax.main", *job, f"--workdir={workdir}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


def run_to_the_end(job: Sequence[str], workdir: Path) -> float:
    """Runs the job without an interruption; returns its seconds."""
    start = time.monotonic()
    if run_job(job, workdir).wait():
        raise SystemExit(f"the uninterrupted run failed:\n{(workdir / 'log.txt').read_text()}")
    return time.monotonic() - start


def interrupt(job: Sequence[str], workdir: Path, after: float, sent: signal.Signals) -> Interruption | None:
    """Runs the job and sends it a signal after so many seconds; None where it has ended before."""
    running, log = run_job(job, workdir), workdir / "log.txt"
    begin = log.stat().st_size
    try:
        status = running.wait(timeout=after)
    except subprocess.TimeoutExpired:
        running.send_signal(sent)
        start = time.monotonic()
        status = running.wait()
        took = time.monotonic() - start
    else:
        if status:
            return Interruption(after, _last_line(log, begin), [f"the job failed with status {status}"])
        return None
    problems = []
    if sent == signal.SIGTERM and status != 0:  # 0: it came to its end just then
        # The signal ends Python itself, which is 143 to a shell, before the command begins and after its end.
        problems += [] if status in (143, -sent) else [f"status {status} after SIGTERM, not 143"]
        problems += [] if took < _LONGEST_LEAVE else [f"it left {took:.0f} s after SIGTERM"]
    return Interruption(after, _last_line(log, begin), problems)


def _last_line(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    return lines[-1] if lines else ""


def differences(run: Path, expected: Path) -> list[str]:
    """Lists in what the folders of two runs differ, beside their times."""
    files, expected_files = (_files(folder) for folder in (run, expected))
    found = [f"{name} is left over" for name in sorted(files - expected_files)]
    found += [f"{name} is missing" for name in sorted(expected_files - files)]
    found += [f"{name} differs" for name in sorted(files & expected_files) if not _same(run / name, expected / name)]
    return found


def _files(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or not any(path.iterdir()))
    return {str(path) for path in paths if path.parts[0] not in _OF_ITS_TIME}


def _same(file: Path, other: Path) -> bool:
    if file.suffix == ".safetensors":  # beside the arrays it holds the seconds
        ours, theirs = load_file(file), load_file(other)
        return ours.keys() == theirs.keys() and all(_same_bits(ours[name], theirs[name]) for name in ours)
    if file.name == "summary.json":
        ours, theirs = (json.loads(each.read_text()) for each in (file, other))
        return (
            ours | {"seconds": None} == theirs | {"seconds": None}
            and ours["seconds"].keys() == theirs["seconds"].keys()
        )
    return file.read_bytes() == other.read_bytes()


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def check(
    job: Sequence[str], folder: Path, signals: Sequence[signal.Signals], seed: int = 0, within: float = 1.0
) -> list[str]:
    """Sends a job each of the signals, and others after it; returns what is wrong, nothing where all is well.

    Args:
        job: arguments of the main job, without its workdir.
        folder: for the workdirs.
        signals: one after the other; a job that has ended before one comes gets a successor.
        seed: of the moments.
        within: part of an uninterrupted run's time in which each comes.
    """
    rng = random.Random(seed)
    seconds = run_to_the_end(job, folder / "expected")
    print(f"uninterrupted: {seconds:.0f} s", flush=True)
    waiting, number = list(signals), 0
    while waiting:
        workdir = folder / f"run_{number}"
        number += 1
        begun, undisturbed = time.monotonic(), True
        while waiting and (interruption := interrupt(job, workdir, rng.uniform(0, within * seconds), waiting[0])):
            undisturbed = False
            sent = waiting.pop(0)
            done = len(signals) - len(waiting)
            print(f"{sent.name} {done}, after {interruption.after:.1f} s: {interruption.last_line}", flush=True)
            if interruption.problems:
                print("; ".join(interruption.problems), flush=True)
                return interruption.problems
        if not waiting:
            run_to_the_end(job, workdir)
        if undisturbed:  # quicker than the first, whose programs perhaps were compiled and kept
            seconds = min(seconds, time.monotonic() - begun)
        problems = differences(workdir, folder / "expected")
        print(f"run {number}: " + ("; ".join(problems) or "the same bits, nothing left over"), flush=True)
        if problems:
            return problems
        shutil.rmtree(workdir)
    return []


def main() -> int:
    """Reads the command line and checks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3, help="interruptions")
    parser.add_argument("--config", default="digits:runlocal", help="of the main job")
    parser.add_argument("--method", default="", help="of the config, in place of its own")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"), help="to send")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--within", type=float, default=1.0, help="part of a run's time in which each comes")
    parser.add_argument("--minutes", type=float, default=0.02, help="between two saves")
    parser.add_argument("--folder", help="for the runs, kept; a temporary one by default")
    settings, rest = parser.parse_known_args()
    job = [f"--config={settings.config}", f"--config.checkpoint_every_minutes={settings.minutes}", *rest]
    if settings.method:
        job.append(f"--config.method={settings.method}")
    signals = [signal.Signals[f"SIG{settings.signal}"]] * settings.times
    with tempfile.TemporaryDirectory() as temporary:
        problems = check(job, Path(settings.folder or temporary), signals, settings.seed, settings.within)
        if problems and not settings.folder:
            print(f"the runs are kept in {shutil.copytree(temporary, tempfile.mkdtemp(), dirs_exist_ok=True)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
