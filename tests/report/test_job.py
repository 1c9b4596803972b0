"""The progress of a whole run, and the time that JAX compiles."""

import io
import threading

import jax
import jax.numpy as jnp
import pytest

from tests.report.test_progress import Clock
from utilgen_jax.report.job import Cost, Job, current_job, job_progress
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime import compile_clock

COSTS = {"real": Cost(passes=100), "pool": Cost(calls=10), "joint": Cost(passes=200, calls=20), "end": Cost()}


def test_what_is_left_follows_from_what_was_done():
    job = Job(COSTS)
    with job.stage("real"):
        assert job.place == "1/4" and job.seconds_left is None
        job.learn(5.0, share=0.5)  # of a stage that an earlier run had begun
    assert job.seconds_left is None  # nothing is known of the generator yet
    with job.stage("pool"):
        job.learn(30.0, share=1.0)
    assert job.seconds_left == pytest.approx(200 * 0.1 + 20 * 3.0)
    with job.stage("joint"):
        job.update(0.75)
        assert job.place == "3/4" and job.seconds_left == pytest.approx(80 / 4)
    assert job.seconds_left == 0


def test_stages_that_were_done_before_or_were_not_expected_are_counted():
    job = Job(COSTS)
    job.skip("real")
    job.skip("pool")
    with job.stage("joint"), job.stage("within"):
        assert job.place == "5/5"
    other = []
    with job.stage("joint"):
        thread = threading.Thread(target=lambda: other.append(job.place))
        thread.start()
        thread.join()
    assert other == [""]  # another thread is in no stage


def test_a_line_in_a_run_tells_its_place_and_the_time_of_all(monkeypatch):
    clock, stream = Clock(), io.StringIO()
    compiled = iter([0.0, 0.0, 0.0, 3.0])
    monkeypatch.setattr("utilgen_jax.report.progress.compile_seconds", lambda: next(compiled))
    with job_progress({"real": Cost(passes=100), "end": Cost(passes=200)}) as job:
        assert current_job() is job
        with job.stage("real"), Progress("real", 10, stream=stream, clock=clock):
            pass
        with job.stage("real"), Progress("real", 10, stream=stream, clock=clock) as shown:
            clock.now += 13
            shown.update(10, loss=1.0)
    assert current_job() is None
    last = stream.getvalue().splitlines()[-1]
    assert last == "[1/2] real: 100% | 10/10 steps | done in 13s, 3.0s of it compiling | all: ETA 20s | loss 1"


def test_the_clock_of_compilation_counts_a_program_once(monkeypatch):
    compile_clock.compile_seconds()
    before = compile_clock.compile_seconds()
    inner = jax.jit(lambda x: jnp.sin(x) @ x + 17.25)
    jax.jit(lambda x: inner(x) + inner(2 * x))(jnp.ones((3, 3))).block_until_ready()
    assert compile_clock.compile_seconds() > before
    monkeypatch.setattr(compile_clock._local, "events", [])
    for begin, end in ((1.0, 2.0), (3.0, 4.0), (2.5, 5.0)):  # the last one holds the one before it
        monkeypatch.setattr(compile_clock.time, "monotonic", lambda end=end: end)
        compile_clock._listen("/jax/core/compile/backend_compile_duration", end - begin)
    assert compile_clock.compile_seconds() == 3.5
    compile_clock._listen("/jax/checkpoint/write/duration_sec", 9.0)
    assert compile_clock.compile_seconds() == 3.5
