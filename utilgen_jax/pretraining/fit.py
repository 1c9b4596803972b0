"""The training loop that the glyph domain's models share."""

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

Params = Any
Batch = Any

CHECKPOINT_EVERY_STEPS = 500


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """The images of one step, int [batch_size], by its number alone: a resumed run sees what a whole one would."""
    return np.random.default_rng(np.random.SeedSequence([seed, step])).integers(0, size, batch_size)


def fit(
    name: str,
    loss_fn: Callable[[Params, Batch, jax.Array], jax.Array],
    params: Params,
    get_batch: Callable[[int], Batch],
    training: Training,
    seed: int,
    folder: Path,
    ema_decay: float = 0.0,
) -> Params:
    """Trains with AdamW under a warm-up and cosine schedule; continues from its last checkpoint in `folder`.

    Args:
        name: of the model, for the progress line and the checkpoint.
        loss_fn: (params, batch, key) -> scalar loss.
        params: where to begin.
        get_batch: step number -> batch.
        training: steps and learning rate.
        seed: of the loss's noise.
        folder: for checkpoints.
        ema_decay: of the exponential moving average of the weights; 0 returns the weights themselves.

    Returns:
        The trained params (their moving average where asked for).

    Raises:
        FloatingPointError: the loss is not finite; names model and step.
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
        # The average warms up with the run, so that early weights do not linger in it.
        decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        average = optax.incremental_update(new_params, state["average"], 1.0 - decay)
        return {"params": new_params, "average": average, "optimizer": optimizer_state}, loss

    state = {"params": params, "average": params, "optimizer": optimizer.init(params)}
    start = 0
    saved = folder / f"{name}_training"
    if orbax_checkpoint.exists(saved):
        restored = orbax_checkpoint.restore(saved, {"state": state, "step": 0})
        state, start = restored["state"], int(restored["step"])
    with Progress(f"foundation: {name}", training.steps, initial=start) as progress:
        for step in range(start, training.steps):
            state, loss = train_step(state, get_batch(step), jnp.int32(step))
            if (step + 1) % 50 == 0 or step + 1 == training.steps:
                if not np.isfinite(loss):
                    raise FloatingPointError(f"foundation: {name}: the loss is {loss} at step {step + 1}")
                progress.update(step + 1, loss=float(loss))
            if (step + 1) % CHECKPOINT_EVERY_STEPS == 0:
                orbax_checkpoint.save(saved, {"state": state, "step": step + 1})
    return state["average"] if ema_decay else state["params"]
