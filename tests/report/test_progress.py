import io

import pytest

from utilgen_jax.report import progress


class Clock:
    """A clock set by the test."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m00s"), (65, "1m05s"),
     (3599.7, "1h00m"), (7380, "2h03m"), (86400 * 3 + 4 * 3600, "3d04h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert progress.format_duration(seconds) == text


def test_the_first_update_is_left_out_of_rate_and_eta():
    clock = Clock()
    clock_ = progress.Progress("final", 101, stream=io.StringIO(), clock=clock)
    assert clock_.rate is None and clock_.eta is None
    clock.now += 60  # compilation
    clock_.update(1)
    assert clock_.rate is None and clock_.eta is None
    clock.now += 5
    clock_.update(21)
    assert clock_.rate == pytest.approx(20 / 5)
    assert clock_.eta == pytest.approx(80 / 4)
    assert clock_.line() == "final:  20% | 21/101 steps | 4 steps/s | 1m05s elapsed | ETA 20s"


def test_work_of_an_earlier_run_does_not_count_as_speed():
    clock = Clock()
    resumed = progress.Progress("pool", 1000, unit="image", initial=800, stream=io.StringIO(), clock=clock)
    assert resumed.line().startswith("pool:  80% | 800/1000 images")
    for done in (810, 830):
        clock.now += 40
        resumed.update(done)
    assert resumed.eta == pytest.approx(170 / (20 / 40))
    assert "2 s/image" in resumed.line()


def test_in_a_log_one_line_each_interval_and_one_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with progress.Progress("final", 100, stream=stream, interval=10, clock=clock) as shown:
        for done in range(1, 101):
            clock.now += 0.25
            shown.update(done, loss=1 / done)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in stream.getvalue()
    assert [line.split(" | ")[1] for line in lines] == ["40/100 steps", "80/100 steps", "100/100 steps"]
    assert lines[0] == "final:  40% | 40/100 steps | 4 steps/s | 10s elapsed | ETA 15s | loss 0.025"
    assert lines[-1] == "final: 100% | 100/100 steps | 4 steps/s | done in 25s | loss 0.01"


def test_on_a_terminal_one_line_is_rewritten_five_times_a_second():
    clock, stream = Clock(), Terminal()
    with progress.Progress("final", 1000, stream=stream, clock=clock) as shown:
        for done in range(1, 1001):
            clock.now += 1 / 64
            shown.update(done)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") <= 1000 / 64 * 5 + 1
    assert text.rstrip("\n").split("\r")[-1].startswith("final: 100% | 1000/1000 steps")


def test_on_a_terminal_a_shorter_line_wipes_out_a_longer_one_and_none_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    clock, stream = Clock(), Terminal()
    shown = progress.Progress("final", 100, stream=stream, clock=clock)
    clock.now += 1
    shown.update(1, long_name_of_a_metric_that_does_not_fit=0.123456)
    clock.now += 1
    shown.update(2)
    first, second = stream.getvalue().split("\r")[1:]
    assert len(first) == 59 and len(second) == 59 and len(second.rstrip()) < 59
    shown.close()


def test_on_a_terminal_one_of_two_stages_has_the_line_and_of_the_other_the_end_is_told():
    clock, stream = Clock(), Terminal()
    with progress.Progress("first", 10, stream=stream, clock=clock) as first:
        with progress.Progress("second", 10, stream=stream, clock=clock) as second:
            for done in range(1, 6):
                clock.now += 1
                first.update(done)
                second.update(2 * done)
    ends = [line.split("\r")[-1].strip() for line in stream.getvalue().split("\n")[:-1]]
    assert stream.getvalue().count("second") == 1 and stream.getvalue().count("first") == 6
    assert [end.split(":")[0] for end in ends] == ["second", "first"]


def test_a_stage_that_breaks_off_ends_its_line_and_does_not_claim_to_be_done():
    clock, stream = Clock(), Terminal()
    with pytest.raises(KeyboardInterrupt), progress.Progress("final", 100, stream=stream, clock=clock) as shown:
        shown.update(1)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n") and "done" not in stream.getvalue()


def test_metrics_are_read_only_when_a_line_is_printed():
    class Device:
        reads = 0

        def __float__(self):
            self.reads += 1
            return 0.5

    loss, clock = Device(), Clock()
    with progress.Progress("final", 50, stream=io.StringIO(), clock=clock) as shown:
        for done in range(1, 51):
            shown.update(done, loss=loss)
    assert loss.reads == 1


def test_other_processes_print_nothing():
    stream = io.StringIO()
    with progress.Progress("final", 2, stream=stream, enabled=False) as shown:
        shown.update(1)
        shown.update(2)
    assert stream.getvalue() == ""


def test_standard_error_is_the_default(capsys):
    with progress.Progress("final", 1) as shown:
        shown.update(1)
    assert capsys.readouterr().err.startswith("final: 100% | 1/1 steps | done in 0.")
