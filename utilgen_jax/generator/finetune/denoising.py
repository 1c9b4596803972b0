"""Trains any part of the generator by the denoising loss, on images and beside images of the generator itself."""

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
class DenoisingConfig:
    """How it is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, drawn with replacement.
        prior_fraction: part of a batch that is images of the generator itself, which keep it from forgetting what it
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
        """Images of the generator itself in a batch; at least one is another's."""
        return min(round(self.batch_size * self.prior_fraction), self.batch_size - 1)


@struct.dataclass
class DenoisingSet:
    """Images to learn from; every leaf is batch-first.

    Attributes:
        latents: clean latents times the scaling factor, float32 [N, h, w, C], see `sampling.encode_to_latents`.
        labels: int32 [N].
        difficulties: measured, float32 [N] in [0, 1]; None where none is to be learnt.
    """

    latents: jax.Array
    labels: jax.Array
    difficulties: jax.Array | None = None

    def take(self, indices: jax.Array | np.ndarray) -> DenoisingSet:
        """Some of the images, in the order of `indices` [n]."""
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
    images: DenoisingSet,
    prior: DenoisingSet,
    config: DenoisingConfig,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Trained:
    """Trains by AdamW, gradients clipped to a norm of 1.

    Args:
        generator: the checkpoint's architecture.
        params: its weights, which stay as they are.
        loss: of each image of a batch; a function of a module, as each one is compiled for itself.
        trained: what to start from; it is not changed.
        prompts: for the loss.
        images: what to learn from.
        prior: images of the generator itself, with difficulties if `images` has them.
        config: how.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device).

    Returns:
        What has become of `trained`.
    """
    trained = init_sharded(lambda tree: jax.tree.map(jnp.copy, tree), trained)
    optimizer_state = init_sharded(_make_optimizer(config).init, trained)
    # One step a call: a loop on the device would be slow on CPU (see `hypergradients.loops`).
    for step in range(config.steps):
        trained, optimizer_state, mean_loss = _step(
            generator,
            loss,
            config,
            trained,
            optimizer_state,
            params,
            prompts,
            images,
            prior,
            jax.random.fold_in(key, step),
        )
        on_step(step + 1, mean_loss)
    return trained


def _make_optimizer(config: DenoisingConfig) -> optax.GradientTransformation:
    schedule = warmup_cosine(config.learning_rate, config.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(
    generator: Generator,
    loss: Loss,
    config: DenoisingConfig,
    trained: Trained,
    optimizer_state: optax.OptState,
    params: Params,
    prompts: Prompts,
    images: DenoisingSet,
    prior: DenoisingSet,
    key: jax.Array,
) -> tuple[Trained, optax.OptState, jax.Array]:
    parts = []
    for use, (source, number) in enumerate(((images, config.batch_size - config.num_prior), (prior, config.num_prior))):
        chosen = jax.random.randint(jax.random.fold_in(key, use), (number,), 0, source.labels.shape[0])
        parts.append(source.take(chosen))
    batch = split_batch(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))

    def mean_loss(trained: Trained) -> jax.Array:
        noise_key = jax.random.fold_in(key, 2)
        return jnp.mean(loss(generator, params, trained, prompts, batch, noise_key, config.snr_gamma or None))

    value, gradient = jax.value_and_grad(mean_loss)(trained)
    updates, optimizer_state = _make_optimizer(config).update(gradient, optimizer_state, trained)
    return optax.apply_updates(trained, updates), optimizer_state, value
