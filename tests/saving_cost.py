"""Measures what it costs a training that its state is saved: a save, and each step between two of them.

  python -m tests.saving_cost
  python -m tests.saving_cost --megabytes=205 --leaves=320 --folder=/shared/disk

205 MB in 320 arrays are a ResNet-50 and its momentum.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from utilgen_jax.config.schema import Config
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.training_loop import TrainingLoop

_STEPS = 2000


def seconds_a_save(state: dict[str, jax.Array], folder: Path, repeats: int) -> float:
    """Seconds of a save, the median of so many after a first one."""
    saved = SavedState(StateFolder(folder, Saving(every_seconds=0.0)))
    saved.restored(state)
    seconds = []
    for step in range(repeats + 1):
        start = time.monotonic()
        saved.keep(step, state, now=True)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:])


def seconds_a_step(folder: Path) -> float:
    """Seconds that a step takes longer where its state is kept and no save is due; noise may make it negative."""
    update = jax.jit(lambda state: (state + 1, {"loss": state}))

    def run(loop: TrainingLoop) -> float:
        start = time.monotonic()
        loop.run(jnp.zeros(()), _STEPS, lambda state, step: update(state))
        return time.monotonic() - start

    run(TrainingLoop())
    without = min(run(TrainingLoop()) for _ in range(3))
    saved = [SavedState(StateFolder(folder / str(number), Saving(every_seconds=3600.0))) for number in range(3)]
    return (min(run(TrainingLoop(saved=each)) for each in saved) - without) / _STEPS


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.saving_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=205.0, help="of the state")
    parser.add_argument("--leaves", type=int, default=320, help="arrays of the state")
    parser.add_argument("--repeats", type=int, default=5, help="saves")
    parser.add_argument("--folder", help="to save in; a temporary one by default")
    settings = parser.parse_args()
    size = int(settings.megabytes * 1e6 / 4 / settings.leaves)
    state = {str(n): jax.random.normal(jax.random.key(n), (size,)) for n in range(settings.leaves)}
    between = 60 * Config.checkpoint_every_minutes
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        save = seconds_a_save(state, Path(folder) / "save", settings.repeats)
        step = seconds_a_step(Path(folder))
    print(
        f"a save of {settings.megabytes:.0f} MB: {save:.2f} s, {save / between:.2%} of the {between:.0f} s between two"
    )
    print(f"a step between two saves: {1e6 * step:.0f} µs")


if __name__ == "__main__":
    main()
