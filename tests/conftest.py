"""Settings that must stand before JAX, torch or a hub client is imported by any test."""

import os
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = (
    "--xla_force_host_platform_device_count=8",  # so that sharding is real in the tests; single-device code sees one
    # Most of the tests' time is the compilation of programs that run for a few steps: these two halve it. XLA refuses
    # flags that it does not know; setup.py says which JAX there may be.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    # Eight devices on two cores that other processes use too: XLA takes a device that comes 40 seconds after the others
    # for lost, and ends the process. (One that never comes: `training_loop` says when.)
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS)).strip()
# Two programs at a time, each of whose eight devices waits for the others, can starve a machine of few cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # none: tests leave the user's alone
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach out
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads, on models this small, would wait for each other
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_collection_modifyitems(items):
    """The longest tests come first: left to the end, they would run alone while the other process waits."""
    longest = ("test_no_leak", "test_every_method_runs_in_two_processes")
    items.sort(key=lambda item: not any(name in item.nodeid for name in longest))


@pytest.fixture(autouse=True)
def told_warnings(monkeypatch):
    """Each test is told all warnings, also those that an earlier one was told."""
    if "utilgen_jax.runtime.notes" in sys.modules:
        monkeypatch.setattr(sys.modules["utilgen_jax.runtime.notes"], "_told", set())


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_module():
    """Compiled programs are forgotten with their module; those of all tests would take 8 GB a process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
