"""Adapts the generator to pictures by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.difficulty_token import append_difficulty_token
from utilgen_jax.generator.policy import Policy, difficulty_encoder_of, policy_denoiser
from utilgen_jax.learning_rate import warmup_cosine
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora
from utilgen_jax.parallel import init_sharded, split_batch


@dataclasses.dataclass(frozen=True)
class AdaptationRecipe:
    """How the policy is fitted.

    Attributes:
      steps: optimiser steps.
      batch_size: pictures a step, drawn with replacement.
      prior_fraction: part of a batch that is pictures of the generator itself, which keep it from forgetting what it
        knew (prior preservation, Ruiz et al. 2023, arXiv 2208.12242); 0 for none.
      learning_rate: of AdamW; peak, after a warm-up of 5 % of the steps; cosine decay to zero.
      lora_rank: of the factors on the UNet's attention.
      snr_gamma: of min-SNR weighting; 0 for none.
    """

    steps: int
    batch_size: int
    prior_fraction: float
    learning_rate: float
    lora_rank: int
    snr_gamma: float

    @property
    def num_prior(self) -> int:
        """Pictures of the generator itself in a batch; at least one is another's."""
        return min(round(self.batch_size * self.prior_fraction), self.batch_size - 1)


@struct.dataclass
class AdaptationSet:
    """Pictures to learn from; every leaf is batch-first.

    Attributes:
      latents: clean latents times the scaling factor, float32 [N, h, w, C], see `sampling.encode_to_latents`.
      labels: int32 [N].
      difficulties: measured, float32 [N] in [0, 1]; None where none is to be learnt.
    """

    latents: jax.Array
    labels: jax.Array
    difficulties: jax.Array | None = None

    def take(self, indices: jax.Array | np.ndarray) -> AdaptationSet:
        """Some of the pictures, in the order of `indices` [n]."""
        return jax.tree.map(lambda leaf: leaf[indices], self)


def adapt(
    generator: Generator,
    params: Params,
    class_embeds: jax.Array,
    pictures: AdaptationSet,
    prior: AdaptationSet,
    recipe: AdaptationRecipe,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Policy:
    """Fits a LoRA to pictures, as DataDream does, and a difficulty encoder with it where their difficulty is known.

    DataDream: arXiv 2407.10910. Difficulty: arXiv 2411.18109, both together on the plain denoising loss. The prior
    pictures are ours.

    Args:
      generator: the checkpoint's architecture.
      params: its weights, which stay as they are.
      class_embeds: text states of each class's prompt, float [K, T, D].
      pictures: what to learn from.
      prior: pictures of the generator itself, with difficulties if `pictures` has them.
      recipe: how.
      key: PRNG key.
      on_step: called after each step with (steps done, loss on the device).

    Returns:
      A policy with `unet_lora` and, with difficulties, `difficulty_encoder`.
    """

    def init(key: jax.Array) -> Policy:
        factors = init_lora(params["unet"], key, rank=recipe.lora_rank).factors
        if pictures.difficulties is None:
            return Policy(unet_lora=factors)
        encoder = DifficultyEncoder(len(class_embeds), class_embeds.shape[-1])
        variables = encoder.init(jax.random.fold_in(key, 1), pictures.labels[:1], pictures.difficulties[:1])
        return Policy(unet_lora=factors, difficulty_encoder=variables["params"])

    policy = init(jax.random.fold_in(key, 0))
    optimizer_state = init_sharded(_make_optimizer(recipe).init, policy)
    batch_key = jax.random.fold_in(key, 1)
    # One step a call: a loop on the device would be slow on CPU (see `hypergradients.loops`).
    for step in range(recipe.steps):
        step_key = jax.random.fold_in(batch_key, step)
        policy, optimizer_state, loss = _step(
            generator, recipe, policy, optimizer_state, params, class_embeds, pictures, prior, step_key
        )
        on_step(step + 1, loss)
    return policy


def adaptation_loss(
    generator: Generator,
    params: Params,
    policy: Policy,
    class_embeds: jax.Array,
    batch: AdaptationSet,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """The denoising loss of each picture under the policy, float32 [B]; `key` is of timesteps and noise."""
    embeds = class_embeds[batch.labels]
    if policy.difficulty_encoder is not None and batch.difficulties is not None:
        encoder = difficulty_encoder_of(policy.difficulty_encoder)
        embeds = append_difficulty_token(encoder, policy.difficulty_encoder, embeds, batch.labels, batch.difficulties)
    denoise = policy_denoiser(generator, params, policy, embeds_condition(generator, embeds), guidance_scale=1.0)
    return denoising_loss(denoise, generator.schedule, batch.latents, key, snr_gamma)


def _make_optimizer(recipe: AdaptationRecipe) -> optax.GradientTransformation:
    schedule = warmup_cosine(recipe.learning_rate, recipe.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    generator: Generator,
    recipe: AdaptationRecipe,
    policy: Policy,
    optimizer_state: optax.OptState,
    params: Params,
    class_embeds: jax.Array,
    pictures: AdaptationSet,
    prior: AdaptationSet,
    key: jax.Array,
) -> tuple[Policy, optax.OptState, jax.Array]:
    parts = []
    for use, (source, number) in enumerate(
        ((pictures, recipe.batch_size - recipe.num_prior), (prior, recipe.num_prior))
    ):
        chosen = jax.random.randint(jax.random.fold_in(key, use), (number,), 0, source.labels.shape[0])
        parts.append(source.take(chosen))
    batch = split_batch(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))

    def mean_loss(policy: Policy) -> jax.Array:
        noise_key = jax.random.fold_in(key, 2)
        snr_gamma = recipe.snr_gamma or None
        return jnp.mean(adaptation_loss(generator, params, policy, class_embeds, batch, noise_key, snr_gamma))

    loss, gradient = jax.value_and_grad(mean_loss)(policy)
    updates, optimizer_state = _make_optimizer(recipe).update(gradient, optimizer_state, policy)
    return optax.apply_updates(policy, updates), optimizer_state, loss
