"""What a training stage reports: a progress line, metrics.jsonl, and the first tensor that is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np

from utilgen_jax.bilevel import check_finite
from utilgen_jax.report.metrics import MetricsWriter
from utilgen_jax.report.progress import Progress
from utilgen_jax.types import OnStep


@contextmanager
def log_stage(metrics: MetricsWriter, stage: str, total: int, every: int) -> Iterator[OnStep]:
    """Sends a training stage's scalars to the progress line and to metrics.jsonl.

    Args:
        metrics: the run's writer.
        stage: its name.
        total: its steps.
        every: steps between two entries; between them nothing is read from the device. An entry is the mean since the
            one before: single steps say little where Mixup draws each one's loss.

    Yields:
        A function of (steps done, loss, further scalars by name); `first_nonfinite` among them, as `bilevel` records
        it, stops the run with the name of what broke.
    """
    since_entry: list[dict[str, jax.Array]] = []
    with Progress(stage, total, enabled=jax.process_index() == 0) as progress:

        def on_step(
            step: int, loss: jax.Array, first_nonfinite: Mapping[str, jax.Array] | None = None, **scalars: jax.Array
        ) -> None:
            since_entry.append({"loss": loss, **scalars})
            if step % every == 0 or step == total:
                check_finite(first_nonfinite or {})
                entries = jax.device_get(since_entry)
                since_entry.clear()
                values = {
                    name: float(np.mean([entry[name] for entry in entries if name in entry], dtype=float))
                    for name in entries[-1]
                }
                metrics.write(step, stage, **values)
                progress.update(step, **values)

        yield on_step
