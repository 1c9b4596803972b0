import numpy as np
import pytest

from utilgen_jax.bench import timing
from utilgen_jax.bench.timing import Timing, Work, relative_errors, time_in_turns, times_as_long


class Clock:
    """A clock that work moves."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def work(self, name, seconds):
        def start():
            self.now += seconds
            self.calls.append(name)

        return Work(start, lambda result: None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_sides_take_turns_and_each_gets_its_own_time(clock):
    sides = {"slow": clock.work("slow", 0.5), "fast": clock.work("fast", 0.2)}
    timings = time_in_turns(sides, repeats=3, warmup=2)
    assert timings["slow"].seconds == pytest.approx((0.5,) * 3) and timings["fast"].seconds == pytest.approx((0.2,) * 3)
    assert clock.calls == ["slow"] * 3 + ["fast"] * 3 + ["slow", "fast"] * 3


def test_short_work_is_repeated_until_the_clock_can_tell(clock):
    timings = time_in_turns({"short": clock.work("short", 0.03)}, repeats=2, warmup=0)
    assert timings["short"].seconds == pytest.approx((0.03, 0.03))
    assert len(clock.calls) == 1 + 2 * 4


def test_the_wait_for_the_result_is_in_the_time(clock):
    def wait(result):
        assert result == "pending"
        clock.now += 2.0

    assert Work(lambda: "pending", wait).run(number=3) == 2.0


def test_noise_that_hits_both_sides_of_a_turn_leaves_the_ratio():
    one, other = Timing((4.0, 40.0, 4.4)), Timing((2.0, 20.0, 2.2))
    assert times_as_long(one, other) == 2.0
    assert (one.minimum, one.median) == (4.0, 4.4)


def test_relative_errors_are_of_the_largest_value():
    ours, others = {"x": np.float32([1.0, -9.0])}, {"x": np.float32([1.0, -10.0])}
    assert relative_errors(ours, others) == {"x": pytest.approx(0.1)}
