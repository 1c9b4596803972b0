"""Settings that must stand before JAX, torch or a hub client is imported by any test."""

import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight fake devices, so that sharding is real in the tests. Single-device code sees the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach out
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads, on models this small, would wait for each other
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What one test has compiled serves the others, in whichever process: a folder of this session alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="utilgen_jax_tests_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def pytest_unconfigure(config):
    """Removes the folder, once the workers, which inherit it, are done."""
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if not hasattr(config, "workerinput") and os.path.basename(folder).startswith("utilgen_jax_tests_"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def quick_compiler():
    """For tests of which nearly all the time is XLA's, on programs that run for a few steps: it optimises little."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
