import numpy as np
import pytest

from utilgen_jax.experiment.logging import log_stage
from utilgen_jax.report import MetricsWriter, read_metrics


class Scalar:
    """A number on the device: counts how often it is read."""

    def __init__(self, value):
        self.value, self.reads = value, 0

    def __float__(self):
        self.reads += 1
        return self.value


def test_stages_log_the_mean_since_the_last_entry_now_and_then_and_at_their_end(tmp_path):
    losses = [Scalar(1 / step) for step in range(1, 8)]
    reads = []
    with MetricsWriter(tmp_path) as metrics, log_stage(metrics, "value", total=7, every=3) as on_step:
        for step, loss in enumerate(losses, start=1):
            on_step(step, loss, **({"mean_weight": Scalar(float(step))} if step > 1 else {}))
            reads.append(sum(loss.reads for loss in losses))
    rows = read_metrics(tmp_path)
    assert [(row["stage"], row["step"]) for row in rows] == [("value", 3), ("value", 6), ("value", 7)]
    np.testing.assert_allclose(
        [row["loss"] for row in rows], [(1 + 1 / 2 + 1 / 3) / 3, (1 / 4 + 1 / 5 + 1 / 6) / 3, 1 / 7]
    )
    assert [row["mean_weight"] for row in rows] == [2.5, 5, 7]
    assert reads == [0, 0, 3, 3, 3, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with (
        MetricsWriter(tmp_path) as metrics,
        pytest.raises(FloatingPointError, match="'value', step 2: loss is nan"),
        log_stage(metrics, "value", total=9, every=2) as on_step,
    ):
        on_step(2, Scalar(float("nan")))
