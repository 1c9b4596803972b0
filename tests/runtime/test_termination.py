"""SIGTERM as a person or a scheduler sends it, to a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from utilgen_jax.runtime import termination

ROOT = Path(__file__).parents[2]
STEPS = """
import sys, time
from utilgen_jax.config.command_line import training_exit_status
from utilgen_jax.runtime import termination

termination.PATIENCE = {patience}

def command():
    print("begun", flush=True)
    for step in range(200):
        time.sleep(0.05)
        if {checks} and termination.is_requested():
            raise termination.Terminated

status = training_exit_status(command)
assert "jax" not in sys.modules
sys.exit(status)
"""


def start(checks: bool = True, patience: float = 15.0) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", STEPS.format(checks=checks, patience=patience)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    return process


def test_the_run_leaves_at_the_next_step_and_tells_what_continues():
    process = start()
    for _ in range(2):  # a scheduler sends it to the process and to its group
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 143
    assert "saving at the next step" in errors and f"this continues: {sys.executable} -c" in errors


def test_a_second_one_ends_at_once():
    process = start(checks=False)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 143 and "ended: a second SIGTERM" in errors


def test_a_step_that_does_not_end_is_not_waited_for():
    process = start(checks=False, patience=0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 143 and "no step has ended in 0 s" in errors


def test_afterwards_signals_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with termination.sigterm_handled():
        os.kill(os.getpid(), signal.SIGTERM)
        while not termination.is_requested():
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) == before and not termination.is_requested()


def test_another_thread_handles_nothing():
    handlers = []

    def work():
        with termination.sigterm_handled():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
