"""A run that is killed three times leaves what one leaves that is not; `python -m tests.kill` does more of it.

Its folder is in a bucket, and it is started again where nothing else is of it.
"""

import signal

import pytest

from tests import kill
from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.tiny import DIGITS, TINY


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_with_the_same_bits(tmp_path, monkeypatch):
    # One device, quick to compile, and what is compiled is kept for the next start.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    checkpoint = write_quick_stable_diffusion(tmp_path / "checkpoint")
    settings = (*TINY, ("generator.checkpoint", str(checkpoint)), ("checkpoint_every_minutes", "0"))
    settings += (("also_synthetic_only", "False"),)
    fields = [f"--config.{name}={value}" for name, value in settings]
    job = kill.Job([f"--config={DIGITS}:method=joint", *fields], in_bucket=True)
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    # Early, so that one run takes them all.
    assert kill.check(job, tmp_path / "runs", signals, within=0.5) == []
