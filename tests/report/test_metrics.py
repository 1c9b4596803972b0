import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.report import metrics


def test_rows_come_back_as_written(tmp_path):
    before = time.time()
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(10, "real", loss=jnp.float32(0.5), accuracy=np.float64(0.25))
        writer.write(np.int64(20), "real", loss=0.125, seen=640)
        writer.write(10, "final", loss=1)
    rows = metrics.read_metrics(tmp_path)
    assert [(row["step"], row["stage"]) for row in rows] == [(10, "real"), (20, "real"), (10, "final")]
    assert rows[0]["loss"] == 0.5 and rows[0]["accuracy"] == 0.25 and rows[1]["seen"] == 640
    assert all(before - 0.01 <= row["time"] <= time.time() + 0.01 for row in rows)
    assert metrics.read_metrics(tmp_path, "final") == [rows[2]]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows


def test_tensorboard_holds_the_same_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(7, "real classifier", loss=0.5)
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, scalars, position = path.read_bytes(), [], 0
    while position < len(content):  # TFRecord: uint64 length, 4 bytes of CRC, the message, 4 bytes of CRC
        length = int.from_bytes(content[position : position + 8], "little")
        event = Event.FromString(content[position + 12 : position + 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        position += 16 + length
    assert scalars == [(7, "real_classifier/loss", 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, jnp.nan])
@pytest.mark.parametrize("enabled", [True, False])
def test_not_finite_stops_with_stage_step_and_name(tmp_path, value, enabled):
    with metrics.MetricsWriter(tmp_path, enabled=enabled) as writer:
        with pytest.raises(FloatingPointError, match=r"'final', step 120: loss is -?(nan|inf)"):
            writer.write(120, "final", accuracy=1.0, loss=value)
    assert metrics.read_metrics(tmp_path) == []


@pytest.mark.parametrize("scalars", [{"loss": np.ones(2)}, {"loss": "0.5"}, {"time": 1.0}])
def test_invalid_metrics_are_refused(tmp_path, scalars):
    with metrics.MetricsWriter(tmp_path, enabled=False) as writer, pytest.raises(ValueError, match=next(iter(scalars))):
        writer.write(1, "final", **scalars)


def test_other_processes_write_nothing(tmp_path):
    with metrics.MetricsWriter(tmp_path / "run", enabled=False) as writer:
        writer.write(1, "final", loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_partial_last_line_is_cut_off_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, "final", loss=3.0)
        writer.write(2, "final", loss=2.0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert [row["loss"] for row in metrics.read_metrics(tmp_path)] == [3.0]  # a reader does not wait for the repair
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(2, "final", loss=1.5)
    assert [row["loss"] for row in metrics.read_metrics(tmp_path)] == [3.0, 1.5]
    assert path.read_bytes().startswith(whole[: whole.index(b"\n") + 1])


def test_a_file_that_is_one_partial_line_becomes_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "sta')
    metrics.MetricsWriter(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_later_values_of_a_repeated_step_count(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, "final", loss=3.0, accuracy=0.5)
        writer.write(2, "final", loss=2.0)
        writer.write(1, "final", loss=2.5)
    rows = metrics.read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.5), (2, 2.0)]
    assert rows[0]["accuracy"] == 0.5


@pytest.mark.parametrize("line", ["not json", "3", '{"step": 1}'])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "stage": "final"}}\n{line}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        metrics.read_metrics(tmp_path)


def test_no_file_is_no_rows(tmp_path):
    assert metrics.read_metrics(tmp_path) == []
