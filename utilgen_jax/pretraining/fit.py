"""The training loop of all components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.pretraining.sizes import Training
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime import orbax_checkpoint
from utilgen_jax.types import Params

Batch = Any

CHECKPOINT_EVERY_STEPS = 500


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

    state = {"params": params, "average": params, "optimizer": optimizer.init(params)}
    start = 0
    name = checkpoint.name
    saved = checkpoint.with_name(f"{name}_training")
    if orbax_checkpoint.exists(saved):
        restored = orbax_checkpoint.restore(saved, {"state": state, "step": 0})
        state, start = restored["state"], int(restored["step"])
    with Progress(f"pretraining: {name}", training.steps, initial=start) as progress:
        for step in range(start, training.steps):
            state, loss = train_step(state, get_batch(step), jnp.int32(step))
            if (step + 1) % 50 == 0 or step + 1 == training.steps:
                if not np.isfinite(loss):
                    raise FloatingPointError(f"pretraining: {name}: the loss is {loss} at step {step + 1}")
                progress.update(step + 1, loss=float(loss))
            if (step + 1) % CHECKPOINT_EVERY_STEPS == 0:
                orbax_checkpoint.save(saved, {"state": state, "step": step + 1})
    return state["average"] if training.ema_decay else state["params"]
