"""The training loop of all components."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.experiment.workdir import versions
from utilgen_jax.pretraining.sizes import Training
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params

Batch = Any

CHECKPOINT_EVERY_SECONDS = 60.0


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """Returns the image indices of a step, int [batch_size]; they depend on seed and step only, so that runs resume."""
    return np.random.default_rng(np.random.SeedSequence([seed, step])).integers(0, size, batch_size)


def fit(
    checkpoint: Path,
    loss_fn: Callable[[Params, Batch, jax.Array], jax.Array],
    params: Params,
    get_batch: Callable[[int], Batch],
    training: Training,
    seed: int,
) -> Params:
    """Trains with AdamW and a warm-up cosine schedule; resumes from the last checkpoint.

    Args:
        checkpoint: folder and, as its last part, the model's name; training is saved in `<checkpoint>_training`.
        loss_fn: (params, batch, key) -> scalar loss.
        params: initial parameters.
        get_batch: step number -> batch.
        training: number of steps, learning rate and moving average.
        seed: random seed of the loss's keys.

    Returns:
        The trained parameters, or their moving average.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    warmup = min(100, training.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, warmup, training.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4))

    # One step a call, see `runtime.loops`.
    @jax.jit
    def train_step(state: dict[str, Any], batch: Batch, step: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        loss, gradients = jax.value_and_grad(loss_fn)(state["params"], batch, key)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        new_params = optax.apply_updates(state["params"], updates)
        # The decay warms up, so that the initial parameters are forgotten.
        decay = jnp.minimum(training.ema_decay, (1.0 + step) / (10.0 + step))
        average = optax.incremental_update(new_params, state["average"], 1.0 - decay)
        return {"params": new_params, "average": average, "optimizer": optimizer_state}, loss

    def update(state: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        state, loss = train_step(state, get_batch(step), jnp.int32(step))
        return state, {"loss": loss}

    state = {"params": params, "average": params, "optimizer": optimizer.init(params)}
    name = checkpoint.name
    data = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(get_batch(0)))).hexdigest()
    identity = {"training": str(training), "seed": str(seed), "data": data[:16], **versions()}
    folder = StateFolder(checkpoint.with_name(f"{name}_training"), Saving(CHECKPOINT_EVERY_SECONDS, identity))
    with Progress(f"pretraining: {name}", training.steps) as progress:

        def on_step(step: int, loss: jax.Array) -> None:
            if step % 50 == 0 or step == training.steps:
                if not np.isfinite(loss):
                    raise FloatingPointError(f"pretraining: {name}: the loss is {loss} at step {step}")
                progress.update(step, loss=float(loss))

        state = TrainingLoop(on_step, SavedState(folder)).run(state, training.steps, update)
    return state["average"] if training.ema_decay else state["params"]
