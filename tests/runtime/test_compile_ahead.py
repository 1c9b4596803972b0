import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from utilgen_jax.runtime.compile_ahead import CompileAhead
from utilgen_jax.runtime.compile_clock import compile_seconds
from utilgen_jax.runtime.sharding import make_mesh, replicate


@pytest.fixture
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])) as mesh:
        yield mesh


def test_a_call_finds_what_the_thread_has_compiled(mesh):
    double = jax.jit(lambda numbers: 2 * numbers)
    numbers = replicate(jnp.arange(3.0))
    shape = jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=numbers.sharding)
    compile_seconds()
    with CompileAhead() as ahead:
        ahead.start("double", lambda: double.lower(shape))
        ahead.wait("double")
        before = compile_seconds()
        assert double(numbers).tolist() == [0, 2, 4]
        assert compile_seconds() == before
        double(numbers[:2])  # other shapes are compiled when they come
        assert compile_seconds() > before


def test_what_goes_wrong_is_raised_where_it_is_waited_for():
    with CompileAhead() as ahead:
        ahead.start("broken", lambda: jax.jit(lambda: jnp.zeros(2) + jnp.zeros(3)).lower())
        with pytest.raises(TypeError, match="shape"):
            ahead.wait("broken")
        ahead.wait("broken")  # told once
        ahead.wait("never started")


def test_the_end_waits_for_what_is_compiled_and_drops_the_rest():
    begun, goes_on, done = threading.Event(), threading.Event(), []

    def lower():
        begun.set()
        goes_on.wait(30)
        done.append(True)
        return jax.jit(lambda: 1).lower()

    with CompileAhead() as ahead:
        ahead.start("first", lower)
        ahead.start("second", lower)
        begun.wait(30)
        threading.Timer(0.2, goes_on.set).start()
    assert done == [True]


TERMINATED_BESIDE_A_COMPILATION = """
import sys, time
from utilgen_jax.config.command_line import training_exit_status
from utilgen_jax.runtime import termination
from utilgen_jax.runtime.compile_ahead import CompileAhead

termination.PATIENCE = 0.5

def command():
    with CompileAhead() as ahead:
        ahead.start("long", lambda: time.sleep(60))
        print("begun", flush=True)
        while not termination.is_requested():
            time.sleep(0.05)
        raise termination.Terminated

sys.exit(training_exit_status(command))
"""


def test_sigterm_does_not_wait_for_a_compilation():
    command = [sys.executable, "-c", TERMINATED_BESIDE_A_COMPILATION]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
