"""Model level of UtilGen (arXiv 2510.24262): rounds of Diffusion-DPO on a pool, useful against useless images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.finetune.dpo_loss import dpo_losses
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.models.lora import init_lora
from utilgen_jax.runtime.sharding import init_sharded


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """How one round goes.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs a step, drawn with replacement, each at its own timestep and noise.
        learning_rate: of Adam.
        lora_rank: of the factors on the UNet's attention.
        beta: how far the adapter may go from where the round began: less the larger.
        fraction: part of each class that wins, and that loses, see `objectives.dpo.preference_pairs`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    lora_rank: int
    beta: float
    fraction: float


@struct.dataclass
class DpoPairs:
    """A pool's images and their pairs.

    Attributes:
        latents: clean latents times the scaling factor, float32 [M, h, w, C].
        labels: int32 [M].
        prompt_embeds: text states of the P different prompts, float [P, T, D].
        prompts: which of them each image was made from, int32 [M].
        winners, losers: int32 [N] each, the pairs.
    """

    latents: jax.Array
    labels: jax.Array
    prompt_embeds: jax.Array
    prompts: jax.Array
    winners: jax.Array
    losers: jax.Array


def train_dpo(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    pairs: DpoPairs,
    config: DpoConfig,
    key: jax.Array,
    on_step: Callable[..., None],
) -> Adapter:
    """Trains the adapter's LoRA for one round, from where the round before left it.

    Args:
        generator: the checkpoint's architecture.
        params: its weights, which stay as they are.
        adapter: what to start from, and the reference that the round does not leave too far; without a LoRA it gets
            one.
        pairs: see there.
        config: how.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device, pair_accuracy=the share of the batch's
            pairs whose winner the adapter has come to prefer since the round began).

    Returns:
        The adapter.
    """
    if adapter.unet_lora is None:
        init_key = jax.random.fold_in(key, 0)
        lora = init_sharded(lambda key: init_lora(params["unet"], key, rank=config.lora_rank).factors, init_key)
        adapter = dataclasses.replace(adapter, unet_lora=lora)
    reference = adapter
    adapter = init_sharded(lambda tree: jax.tree.map(jnp.copy, tree), adapter)
    optimizer_state = init_sharded(_make_optimizer(config).init, adapter)
    batch_key = jax.random.fold_in(key, 1)
    # One step a call: a loop on the device would be slow on CPU (see `hypergradients.loops`).
    for step in range(config.steps):
        adapter, optimizer_state, loss, accuracy = _step(
            generator, config, adapter, optimizer_state, reference, params, pairs, jax.random.fold_in(batch_key, step)
        )
        on_step(step + 1, loss, pair_accuracy=accuracy)
    return adapter


def _make_optimizer(config: DpoConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    generator: Generator,
    config: DpoConfig,
    adapter: Adapter,
    optimizer_state: optax.OptState,
    reference: Adapter,
    params: Params,
    pairs: DpoPairs,
    key: jax.Array,
) -> tuple[Adapter, optax.OptState, jax.Array, jax.Array]:
    size = config.batch_size
    chosen = jax.random.randint(jax.random.fold_in(key, 0), (size,), 0, pairs.winners.shape[0])
    members = jnp.concatenate([pairs.winners[chosen], pairs.losers[chosen]])
    latents, labels = pairs.latents[members], pairs.labels[members]
    sample_inputs = SampleInputs(
        condition=embeds_condition(generator, pairs.prompt_embeds[pairs.prompts[members]]),
        latents=latents,
        labels=labels,
        rows=labels,
        keys=jax.random.split(key, 2 * size),
    )
    places = np.arange(2 * size)

    def mean_loss(adapter: Adapter) -> tuple[jax.Array, jax.Array]:
        noise_key = jax.random.fold_in(key, 1)
        losses = dpo_losses(
            generator,
            params,
            adapter,
            reference,
            latents,
            sample_inputs,
            places[:size],
            places[size:],
            noise_key,
            config.beta,
        )
        return jnp.mean(losses), jnp.mean(losses < jnp.log(2.0))

    (loss, accuracy), gradient = jax.value_and_grad(mean_loss, has_aux=True)(adapter)
    updates, optimizer_state = _make_optimizer(config).update(gradient, optimizer_state, adapter)
    return optax.apply_updates(adapter, updates), optimizer_state, loss, accuracy
