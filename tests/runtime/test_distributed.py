"""Several processes as one run. JAX joins others only when it starts: they run this file."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.runtime import distributed
from utilgen_jax.runtime.distributed import agree, end_together, initialize_distributed, wait_for_all, writer_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environ", "joins"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_DOMAIN_SIZE": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "UTILGEN_DISTRIBUTED": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, (None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, None, None)),
        ({"UTILGEN_DISTRIBUTED": "1"}, (None, None, None)),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            ("host:1", 2, 1),
        ),
    ],
)
def test_joins_other_processes_only_where_there_are_some(monkeypatch, environ, joins):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(tuple(options.values())))
    assert initialize_distributed(environ) == (joins is not None)
    assert calls == ([joins] if joins else [])


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"UTILGEN_DISTRIBUTED": "yes"}, "UTILGEN_DISTRIBUTED='yes'"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "cannot join"),
    ],
)
def test_bad_environment(environ, says):
    with pytest.raises(InputError, match=says):
        initialize_distributed(environ)


def test_one_process_is_alone():
    wait_for_all("anywhere")
    assert agree(True) is True and agree(False) is False
    before = threading.active_count()
    with pytest.raises(ValueError, match="raised as ever"), end_together():
        assert threading.active_count() == before
        raise ValueError("raised as ever")


@pytest.mark.parametrize(
    ("path", "writer"),
    [
        ("pool/round_00/shard-00001/metadata.jsonl", 1),
        ("captions.shard-00001.jsonl", 1),
        ("shard-00007/a.png", 0),  # of a run of more processes
        ("pool/a_shard-00001/a.png", 0),
        ("summary.json", 0),
    ],
)
def test_a_file_is_the_first_processs_unless_its_path_names_the_shard_of_another(path, writer):
    assert writer_of(path, processes=2) == writer


class FakeClient:
    """Of a service that holds what the processes have reported."""

    def __init__(self, **values):
        self.values = values

    def key_value_set(self, key, value):
        if key in self.values:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self.values[key] = value

    def key_value_try_get(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return self.values[key]


class LeftError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def leave(monkeypatch):
    """Makes this the second of two processes, with a client of a service that holds some values."""

    def exit(status):
        raise LeftError(status)

    def client(**values):
        made = FakeClient(**{distributed._FAILURE if key == "failure" else key: value for key, value in values.items()})
        monkeypatch.setattr(distributed, "_client", lambda: made)
        return made

    monkeypatch.setattr(distributed, "_INTERVAL", 1000)
    monkeypatch.setattr(distributed, "_GRACE", 0)
    monkeypatch.setattr(distributed, "_connection", lambda client: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(os, "_exit", exit)
    return client


def test_what_a_failure_elsewhere_makes_of_a_collective_operation_is_not_this_processs_error(leave, capsys):
    client = leave(failure="process 0: ValueError: the disk is full")
    with pytest.raises(LeftError, match="1"), end_together():
        raise jax.errors.JaxRuntimeError("connection closed by peer")
    assert "another process of this run failed; process 0: ValueError: the disk is full" in capsys.readouterr().err
    assert list(client.values) == [distributed._FAILURE]


@pytest.mark.parametrize(
    "error", [ValueError("own"), jax.errors.JaxRuntimeError("own"), KeyboardInterrupt("own"), SystemExit("own")]
)
def test_an_error_is_reported_once_and_raised_as_ever(leave, error):
    client = leave()
    with pytest.raises(type(error), match="own"), end_together():
        raise error
    assert client.values == {distributed._FAILURE: f"process 1: {type(error).__name__}: own"}


def test_a_second_error_of_its_own_is_raised_too(leave, capsys):
    client = leave(failure="process 0: ValueError: first")
    with pytest.raises(ValueError, match="second"), end_together():
        raise ValueError("second")
    assert client.values == {distributed._FAILURE: "process 0: ValueError: first"}
    assert not capsys.readouterr().err


def test_no_thread_is_left_behind(leave):
    leave()
    before = threading.active_count()
    with end_together():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def run_two(function, *arguments, timeout=120):
    """Runs one of this file's functions in two processes: exit status, stdout, stderr and seconds of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, __file__, function.__name__, *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command,
            env=environ | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = zip(processes, outputs, strict=True)
    return [(process.returncode, _without_gloo(output), _without_gloo(error)) for process, (output, error) in results]


def _without_gloo(text):
    """Gloo, which connects the processes, has lines of its own."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("[Gloo]"))


@pytest.mark.slow
def test_two_processes_wait_and_agree():
    for number, (status, output, error) in enumerate(run_two(waits_and_agrees)):
        assert status == 0, error
        assert output.split() == ["True", "False"], number


def waits_and_agrees():
    """The first process comes two seconds late; each has an opinion of its own."""
    initialize_distributed()
    wait_for_all("start")
    first = jax.process_index() == 0
    start = time.monotonic()
    if first:
        time.sleep(2)
    wait_for_all("late")
    assert time.monotonic() - start > 1.5
    with end_together():
        print(agree(first), agree(not first))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("busy", ["computing", "waiting", "collective"])
def test_a_failure_of_one_process_ends_both(failing, busy):
    start = time.monotonic()
    results = run_two(one_fails, failing, busy)
    assert time.monotonic() - start < 30
    for number, (status, output, error) in enumerate(results):
        assert status not in (0, None), (number, error)
        assert "not reached" not in output
    _, _, own = results[failing]
    assert "ValueError: the disk is full" in own and "another process" not in own
    _, _, others = results[1 - failing]
    assert f"error: another process of this run failed; process {failing}: ValueError: the disk is full" in others
    assert results[1 - failing][0] == 1


def one_fails(failing, busy):
    """One process fails; the other computes, waits for it, or is in a collective operation with it."""
    initialize_distributed()
    with end_together():
        wait_for_all("start")
        if jax.process_index() == int(failing):
            time.sleep(1)
            raise ValueError("the disk is full")
        if busy == "computing":
            time.sleep(300)
        elif busy == "waiting":
            wait_for_all("never")
        else:
            mesh = jax.make_mesh((2,), ("data",))
            sharding = jax.NamedSharding(mesh, jax.P("data"))
            ones = jax.make_array_from_callback((2,), sharding, lambda index: np.ones(2)[index])
            print(float(jax.jit(jnp.sum)(ones)))
    print("not reached")


@pytest.mark.slow
@pytest.mark.parametrize("busy", ["computing", "collective"])
def test_where_one_is_killed_the_other_ends_with_its_name(busy):
    start = time.monotonic()
    (status, output, error), (killed, _, _) = run_two(one_is_killed, busy)
    assert time.monotonic() - start < 30
    assert (status, killed) == (1, -signal.SIGKILL) and "not reached" not in output
    assert f"process 1 on {socket.gethostname()} has died" in error and "Traceback" not in error


def one_is_killed(busy):
    """The second process is killed; the first computes, or waits for it in a collective operation."""
    initialize_distributed()
    with end_together():
        wait_for_all("start")
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if busy == "computing":
            time.sleep(300)
        wait_for_all("never")
    print("not reached")


@pytest.mark.slow
def test_exits_keep_their_status():
    results = run_two(one_exits)
    assert [status for status, _, _ in results] == [1, 2]
    assert "process 1: SystemExit: 2" in results[0][2]


def one_exits():
    initialize_distributed()
    with end_together():
        if jax.process_index() == 1:
            sys.exit(2)
        time.sleep(300)


@pytest.mark.slow
def test_runs_that_succeed_end_quietly():
    for status, output, error in run_two(both_succeed):
        assert (status, output) == (0, "done\n"), error
        assert "error" not in error.lower()


def both_succeed():
    """The second process is done two seconds after the first, which serves it until then."""
    initialize_distributed()
    with end_together():
        wait_for_all("start")
        time.sleep(2 * jax.process_index())
    print("done")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
