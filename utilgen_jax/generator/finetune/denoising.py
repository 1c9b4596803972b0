"""Trains any part of the generator by the denoising loss, on pictures and beside pictures of the generator itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.sharding import init_sharded, split_batch


@dataclasses.dataclass(frozen=True)
class DenoisingRecipe:
    """How it is trained.

    Attributes:
      steps: optimiser steps.
      batch_size: pictures a step, drawn with replacement.
      prior_fraction: part of a batch that is pictures of the generator itself, which keep it from forgetting what it
        knew (prior preservation, Ruiz et al. 2023, arXiv 2208.12242); 0 for none.
      learning_rate: of AdamW; peak, after a warm-up of 5 % of the steps; cosine decay to zero.
      snr_gamma: of min-SNR weighting; 0 for none.
    """

    steps: int
    batch_size: int
    prior_fraction: float
    learning_rate: float
    snr_gamma: float

    @property
    def num_prior(self) -> int:
        """Pictures of the generator itself in a batch; at least one is another's."""
        return min(round(self.batch_size * self.prior_fraction), self.batch_size - 1)


@struct.dataclass
class DenoisingSet:
    """Pictures to learn from; every leaf is batch-first.

    Attributes:
      latents: clean latents times the scaling factor, float32 [N, h, w, C], see `sampling.encode_to_latents`.
      labels: int32 [N].
      difficulties: measured, float32 [N] in [0, 1]; None where none is to be learnt.
    """

    latents: jax.Array
    labels: jax.Array
    difficulties: jax.Array | None = None

    def take(self, indices: jax.Array | np.ndarray) -> DenoisingSet:
        """Some of the pictures, in the order of `indices` [n]."""
        return jax.tree.map(lambda leaf: leaf[indices], self)


Trained = Any  # a pytree of what is trained
Prompts = Any  # arrays of what stands in the prompts
# (generator, its weights, what is trained, prompts, batch of B, key of timesteps and noise, snr_gamma) -> float32 [B]
Loss = Callable[[Generator, Params, Trained, Prompts, DenoisingSet, jax.Array, float | None], jax.Array]


def train_by_denoising(
    generator: Generator,
    params: Params,
    loss: Loss,
    trained: Trained,
    prompts: Prompts,
    pictures: DenoisingSet,
    prior: DenoisingSet,
    recipe: DenoisingRecipe,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Trained:
    """Trains by AdamW, gradients clipped to a norm of 1.

    Args:
      generator: the checkpoint's architecture.
      params: its weights, which stay as they are.
      loss: of each picture of a batch; a function of a module, as each one is compiled for itself.
      trained: what to start from; it is not changed.
      prompts: for the loss.
      pictures: what to learn from.
      prior: pictures of the generator itself, with difficulties if `pictures` has them.
      recipe: how.
      key: PRNG key.
      on_step: called after each step with (steps done, loss on the device).

    Returns:
      What has become of `trained`.
    """
    trained = init_sharded(lambda tree: jax.tree.map(jnp.copy, tree), trained)
    optimizer_state = init_sharded(_make_optimizer(recipe).init, trained)
    # One step a call: a loop on the device would be slow on CPU (see `hypergradients.loops`).
    for step in range(recipe.steps):
        trained, optimizer_state, mean_loss = _step(
            generator,
            loss,
            recipe,
            trained,
            optimizer_state,
            params,
            prompts,
            pictures,
            prior,
            jax.random.fold_in(key, step),
        )
        on_step(step + 1, mean_loss)
    return trained


def _make_optimizer(recipe: DenoisingRecipe) -> optax.GradientTransformation:
    schedule = warmup_cosine(recipe.learning_rate, recipe.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(
    generator: Generator,
    loss: Loss,
    recipe: DenoisingRecipe,
    trained: Trained,
    optimizer_state: optax.OptState,
    params: Params,
    prompts: Prompts,
    pictures: DenoisingSet,
    prior: DenoisingSet,
    key: jax.Array,
) -> tuple[Trained, optax.OptState, jax.Array]:
    parts = []
    for use, (source, number) in enumerate(
        ((pictures, recipe.batch_size - recipe.num_prior), (prior, recipe.num_prior))
    ):
        chosen = jax.random.randint(jax.random.fold_in(key, use), (number,), 0, source.labels.shape[0])
        parts.append(source.take(chosen))
    batch = split_batch(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))

    def mean_loss(trained: Trained) -> jax.Array:
        noise_key = jax.random.fold_in(key, 2)
        return jnp.mean(loss(generator, params, trained, prompts, batch, noise_key, recipe.snr_gamma or None))

    value, gradient = jax.value_and_grad(mean_loss)(trained)
    updates, optimizer_state = _make_optimizer(recipe).update(gradient, optimizer_state, trained)
    return optax.apply_updates(trained, updates), optimizer_state, value
