"""A run of two processes: every method ends, and what one process leaves the other finds."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests import kill
from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.tiny import DIGITS, NAMES, TINY

ROOT = Path(__file__).parents[1]
SMALLEST_RUN = [
    f"--config={DIGITS}:method=vanilla",
    "--config.generator.steps=1",
    "--config.pool.images_per_class=2",
    "--config.classifier.steps=2",
    "--config.classifier.name=mlp",
    "--workdir=run",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[[list[str], Path], list[subprocess.Popen]]:
    """Starts a command as two processes of one run; what one run has compiled the next one finds."""
    return partial(start_two, tmp_path_factory.mktemp("programs"))


def start_two(
    programs: Path, command: list[str], cwd: Path, machines: tuple[str, str] = ("machine", "machine")
) -> list[subprocess.Popen]:
    """The command as two processes of one run, one CPU device each, on machines that have a disk each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": flags}
    shared |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(programs)}
    shared |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env=os.environ
            | shared
            | {"JAX_PROCESS_ID": str(number), "XDG_CACHE_HOME": str(cwd / f"disk_of_{machines[number]}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]


def test_every_method_runs_in_two_processes(start, tmp_path):
    checkpoint = write_quick_stable_diffusion(tmp_path / "checkpoint")
    fields = [f"--config.{name}={value}" for name, value in (*TINY, ("generator.checkpoint", str(checkpoint)))]
    command = ["utilgen_jax.compare", f"--config={DIGITS}", "--seeds=1", f"--methods={','.join(NAMES)}"]
    processes = start([*command, *fields, f"--workdir=file://{tmp_path}/run"], tmp_path, ("one", "other"))
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    done = {path.parent.name for path in (tmp_path / "run").rglob("summary.json")}
    assert done == set(NAMES)
    assert (tmp_path / "run" / "compare.md").is_file()
    assert "compare.md" in outputs[0] and "compare.md" not in outputs[1]  # the first process alone reports


def test_images_without_a_line_yet_are_not_taken_for_those_of_a_run_that_was_cut_off(start, tmp_path):
    # The second process opens the folder when the first one has written images, and not yet their lines.
    code = """
import os, sys, time
from utilgen_jax import main
from utilgen_jax.experiment.joint import JointSteps
from utilgen_jax.methods.joint import JointPool
from utilgen_jax.pool import storage

# The first process copies the plain pool, while the second opens the copy; nothing is trained before.
JointPool.train, JointPool._is_used = lambda *arguments: None, lambda *arguments: False
JointSteps.accuracy, JointPool.findings = lambda *arguments: 0.0, lambda *arguments: None

append_text, open_folder = storage.append_text, storage.PoolWriter.__init__

def append_slowly(*arguments):
    time.sleep(4)
    append_text(*arguments)

def open_late(*arguments):
    time.sleep(2)
    open_folder(*arguments)

if os.environ["JAX_PROCESS_ID"] == "0":
    storage.append_text = append_slowly
else:
    storage.PoolWriter.__init__ = open_late
sys.exit(main.main(sys.argv))
"""
    (tmp_path / "slow_disk.py").write_text(code)
    checkpoint = write_quick_stable_diffusion(tmp_path / "checkpoint")
    fields = [f"--config.{name}={value}" for name, value in (*TINY, ("generator.checkpoint", str(checkpoint)))]
    processes = start(
        ["slow_disk", f"--config={DIGITS}:method=joint_without_weights", *fields, "--workdir=run"], tmp_path
    )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(list((tmp_path / "run" / "pool" / "round_00").rglob("*.png"))) == 8


def test_a_run_leaves_a_report_and_one_that_was_cut_off_goes_on_from_its_bucket_with_the_same_bits(start, tmp_path):
    command = ["utilgen_jax.main", *SMALLEST_RUN, "--config.classifier.steps=1200"]  # so that it is cut off within them
    command += ["--config.checkpoint_every_minutes=0.01", "--config.also_synthetic_only=False"]
    whole = start([*command, "--workdir=whole"], tmp_path)
    outputs = [process.communicate(timeout=300)[0] for process in whole]
    assert [process.returncode for process in whole] == [0, 0], outputs
    assert (tmp_path / "whole" / "report" / "index.html").is_file() and (tmp_path / "whole" / "summary.json").is_file()
    assert "test accuracy" in outputs[0] and "test accuracy" not in outputs[1]

    command.append(f"--workdir=file://{tmp_path}/cut")
    processes = start(command, tmp_path)
    states = tmp_path / "cut" / "checkpoints" / "classifier_vanilla.partial" / "training"
    wait_until(states.is_dir)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143] and states.is_dir(), outputs

    # From here on each process is on a machine that knows nothing of the run.
    saved = number_of_states(tmp_path / "cut")
    processes = start(command, tmp_path, ("second", "third"))
    wait_until(lambda: number_of_states(tmp_path / "cut") > saved + 1)
    processes[1].kill()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL] and "has died" in outputs[0], outputs
    assert "classifier_vanilla: goes on after step" in outputs[0]

    again = start(command, tmp_path, ("fourth", "fifth"))
    outputs = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert kill.differences(tmp_path / "cut", tmp_path / "whole") == []


def wait_until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)


def number_of_states(bucket: Path) -> int:
    """How many states have been saved."""
    return max(int(file.stem) for file in (bucket / ".saved").glob("[0-9]*.json"))


@pytest.mark.parametrize("culprit", [0, 1])
def test_where_one_process_fails_both_end_with_its_message(start, tmp_path, culprit):
    code = f"""
import os, sys
import jax
from utilgen_jax import main

def broken(*arguments):
    raise OSError(f"disk of process {{jax.process_index()}} is full")

if os.environ["JAX_PROCESS_ID"] == "{culprit}":
    from utilgen_jax.experiment import pools
    pools.read_pool = broken
sys.exit(main.main(sys.argv))
"""
    (tmp_path / "broken.py").write_text(code)
    processes = start(["broken", *SMALLEST_RUN], tmp_path)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode not in (0, None) for process in processes)
    assert f"disk of process {culprit} is full" in outputs[0] and f"disk of process {culprit} is full" in outputs[1]
