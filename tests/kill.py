"""Ends a job at random moments, runs it again each time, and compares what it leaves with an uninterrupted run.

  python -m tests.kill --times=30 --method=joint
  python -m tests.kill --times=10 --signal=TERM --config=digits:runlocal,method=utilgen
  python -m tests.kill --times=10 --config=my_config.py --config.classifier.steps=1000 --folder=/tmp/kill
  python -m tests.kill --times=10 --method=vanilla --config.data.memory_gib=0.0001
  python -m tests.kill --times=10 --method=vanilla --processes=2
  python -m tests.kill --times=10 --method=vanilla --in_bucket
  python -m tests.kill --times=10 --method=vanilla --in_bucket --processes=2

A job that ends by itself is compared bit for bit: its summary, the results of its stages, and its pools; and it leaves
no file that the uninterrupted run does not leave. Then the next job begins, until all of the --times are done. Of
several --processes one is killed, and all are started again; with --in_bucket each start, and each process, finds
nothing of the run but its folder in a bucket. Other arguments go to the job. Exit status: 0 all are the same, 1 one
is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from utilgen_jax.runtime.compilation_cache import keep_programs

ROOT = Path(__file__).parents[1]
_LONGEST_LEAVE = 20.0  # seconds from SIGTERM to the end
_LONGEST_JOIN = 330.0  # JAX waits so long for a process that was killed before it came; for one that came, seconds
# What differs between any two runs: hours, seconds, and what is drawn of them.
_OF_ITS_TIME = ("metrics.jsonl", "tensorboard", "report", "log.txt", "log1.txt", "log2.txt", "log3.txt", ".saved")


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


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of the main job.

    Attributes:
        arguments: of the command, without its workdir.
        processes: of which the run consists, on this machine.
        in_bucket: whether its workdir is a bucket to it; each process is then on a machine that does not know the run.
    """

    arguments: Sequence[str]
    processes: int = 1
    in_bucket: bool = False

    def start(self, workdir: Path) -> list[subprocess.Popen]:
        """Starts its processes; their logs are in the workdir."""
        workdir.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if self.processes > 1:
            address = f"127.0.0.1:{_free_port()}"
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(self.processes)}
        command = [sys.executable, "-m", "utilgen_jax.main", *self.arguments]
        command.append(f"--workdir={'file://' if self.in_bucket else ''}{workdir}")
        started = []
        for number in range(self.processes):
            with open(_log(workdir, number), "ab") as log:
                own = environment | ({"JAX_PROCESS_ID": str(number)} if self.processes > 1 else {})
                if self.in_bucket:
                    own["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="machine_", dir=workdir.parent)
                started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own))
        return started

    def run_to_the_end(self, workdir: Path) -> float:
        """Runs without an interruption; returns the seconds."""
        start = time.monotonic()
        if any([process.wait() for process in self.start(workdir)]):
            raise SystemExit(f"the uninterrupted run failed:\n{_log(workdir, 0).read_text()}")
        return time.monotonic() - start

    def interrupt(self, workdir: Path, after: float, sent: signal.Signals, rng: random.Random) -> Interruption | None:
        """Runs and sends a signal after so many seconds; None where it has ended before.

        Of several processes one is killed and the others end by themselves; SIGTERM comes to all, as from a scheduler.
        """
        running, log = self.start(workdir), _log(workdir, 0)
        begin = log.stat().st_size
        deadline = time.monotonic() + after
        while time.monotonic() < deadline and any(process.poll() is None for process in running):
            time.sleep(min(0.05, max(deadline - time.monotonic(), 0)))
        statuses = [process.poll() for process in running]
        if None not in statuses:
            problems = [f"the job failed with status {status}" for status in statuses if status]
            return Interruption(after, _last_line(log, begin), problems) if problems else None
        for process in running if sent == signal.SIGTERM else [rng.choice(running)]:
            process.send_signal(sent)
        start = time.monotonic()
        statuses = [process.wait() for process in running]
        took = time.monotonic() - start
        problems = []
        if sent == signal.SIGTERM:
            # 0: it came to its end just then. The signal ends Python itself, which is 143 to a shell, before the
            # command begins and after its end.
            fine = (0, 143, -sent)
            problems += [f"status {status} after SIGTERM, not 143" for status in statuses if status not in fine]
        longest = _LONGEST_LEAVE if sent == signal.SIGTERM else _LONGEST_JOIN
        if took > longest and (sent == signal.SIGTERM or self.processes > 1):
            problems.append(f"it left {took:.0f} s after {sent.name}")
        return Interruption(after, _last_line(log, begin), problems)


def _log(workdir: Path, number: int) -> Path:
    return workdir / f"log{number or ''}.txt"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
    is_bucket = (folder / ".saved").is_dir()  # in which there are no folders, so that an empty one is no leftover
    paths = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if not path.is_dir() or not (is_bucket or any(path.iterdir()))
    )
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


def check(job: Job, folder: Path, signals: Sequence[signal.Signals], seed: int = 0, within: float = 1.0) -> list[str]:
    """Sends a job each of the signals, and others after it; returns what is wrong, nothing where all is well.

    Args:
        job: to run.
        folder: for the workdirs.
        signals: one after the other; a job that has ended before one comes gets a successor.
        seed: of the moments.
        within: part of an uninterrupted run's time in which each comes.
    """
    rng = random.Random(seed)
    seconds = job.run_to_the_end(folder / "expected")
    print(f"uninterrupted: {seconds:.0f} s", flush=True)
    waiting, number = list(signals), 0
    while waiting:
        workdir = folder / f"run_{number}"
        number += 1
        begun, undisturbed = time.monotonic(), True
        while waiting and (interruption := job.interrupt(workdir, rng.uniform(0, within * seconds), waiting[0], rng)):
            undisturbed = False
            sent = waiting.pop(0)
            done = len(signals) - len(waiting)
            print(f"{sent.name} {done}, after {interruption.after:.1f} s: {interruption.last_line}", flush=True)
            if interruption.problems:
                print("; ".join(interruption.problems), flush=True)
                return interruption.problems
        if not waiting:
            job.run_to_the_end(workdir)
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
    parser.add_argument("--processes", type=int, default=1, help="of a run; one of them is killed")
    parser.add_argument(
        "--in_bucket", action="store_true", help="the workdir is a bucket, each process on a new machine"
    )
    parser.add_argument("--folder", help="for the runs, kept; a temporary one by default")
    settings, rest = parser.parse_known_args()
    job = [f"--config={settings.config}", f"--config.checkpoint_every_minutes={settings.minutes}", *rest]
    if settings.method:
        job.append(f"--config.method={settings.method}")
    keep_programs()
    signals = [signal.Signals[f"SIG{settings.signal}"]] * settings.times
    with tempfile.TemporaryDirectory() as temporary:
        runs = Job(job, settings.processes, settings.in_bucket)
        problems = check(runs, Path(settings.folder or temporary), signals, settings.seed, settings.within)
        if problems and not settings.folder:
            print(f"the runs are kept in {shutil.copytree(temporary, tempfile.mkdtemp(), dirs_exist_ok=True)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
