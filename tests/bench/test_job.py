"""The time of a run's stages is what they took, each thread's and each inner stage's by itself."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.tiny import DIGITS, TINY
from utilgen_jax.bench import __main__ as bench
from utilgen_jax.bench.job import OUTSIDE, StageTimes
from utilgen_jax.runtime.compile_clock import seconds_by_kind


def test_an_inner_stage_is_taken_off_the_outer_one_and_compilation_has_its_column():
    times = StageTimes()
    seconds_by_kind()
    with times.stage("outer"):
        time.sleep(0.2)
        with times.stage("inner"):
            jax.jit(lambda x: jnp.sin(x) * 3)(1.0)
            time.sleep(0.5)
    outer, inner = times.stages["outer"], times.stages["inner"]
    assert inner["compile"] > 0 and inner["trace"] > 0 and inner["wait"] >= 0.45
    assert outer["compile"] == outer["trace"] == 0
    assert 0.2 <= outer["seconds"] < inner["seconds"]


@pytest.mark.slow
def test_a_run_is_timed_stage_by_stage(tmp_path, capsys):
    settings = dict(TINY) | {"generator.checkpoint": str(write_quick_stable_diffusion(tmp_path / "checkpoint"))}
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    assert bench.main(["bench", "job", f"--config={DIGITS}:method=vanilla", *fields]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"classifier_real", "pool_plain", "classifier_vanilla", OUTSIDE} <= set(figures["stages"])
    assert figures["stages"]["pool_plain"]["compile"] > 0
    stages = sum(row["seconds"] for row in figures["stages"].values())
    assert figures["seconds"] / 2 < figures["import"] + stages <= figures["seconds"] + 1
