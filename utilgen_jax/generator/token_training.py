"""Learns a word for each class from its pictures: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax import weights
from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.adaptation import AdaptationSet
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.conditioning import embeds_condition, encode_tokens
from utilgen_jax.generator.policy import Policy, policy_denoiser
from utilgen_jax.generator.textual_inversion import add_tokens, with_rows
from utilgen_jax.parallel import init_sharded, split_batch


@dataclasses.dataclass(frozen=True)
class InversionRecipe:
    """How the words are learnt.

    Attributes:
      steps: optimiser steps.
      batch_size: pictures a step, drawn with replacement.
      learning_rate: of AdamW, constant, as in diffusers' script.
    """

    steps: int
    batch_size: int
    learning_rate: float


def class_tokens(num_classes: int) -> list[str]:
    """What the learnt words are called: `<class-0>`, `<class-1>` ..."""
    return [f"<class-{label}>" for label in range(num_classes)]


def initial_embeds(generator: Generator, params: Params, class_names: Sequence[str]) -> jax.Array:
    """What the words start from: the mean of the embeddings of the class name's own tokens, float32 [K, D]."""
    input_ids = weights.tokenize(generator.tokenizer, class_names)
    tokenizer = generator.tokenizer
    is_word = ~np.isin(input_ids, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
    variables = {"params": params["text_encoder"]}
    embeds = generator.text_encoder.apply(variables, jnp.asarray(input_ids), method="embed_tokens")
    share = is_word / np.maximum(is_word.sum(1, keepdims=True), 1)
    return jnp.einsum("kt,ktd->kd", share, embeds.astype(jnp.float32))


def learn_tokens(
    generator: Generator,
    params: Params,
    prompts: Sequence[str],
    initial: jax.Array,
    pictures: AdaptationSet,
    recipe: InversionRecipe,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> jax.Array:
    """Learns one embedding a class by the denoising loss; all else stays as it is.

    Args:
      generator: the checkpoint.
      params: its weights.
      prompts: one a class, in which its token stands, see `class_tokens`.
      initial: what to start from, float32 [K, D].
      pictures: of all classes.
      recipe: how.
      key: PRNG key.
      on_step: called after each step with (steps done, loss on the device).

    Returns:
      Float32 [K, D], for `textual_inversion.add_tokens`.
    """
    first = len(generator.tokenizer)
    generator, params = add_tokens(generator, params, class_tokens(len(prompts)), initial)
    input_ids = jnp.asarray(weights.tokenize(generator.tokenizer, prompts))
    embeds = init_sharded(jnp.copy, initial)
    optimizer_state = init_sharded(_make_optimizer(recipe).init, embeds)
    batch_key = jax.random.fold_in(key, 0)
    # One step a call: a loop on the device would be slow on CPU (see `hypergradients.loops`).
    for step in range(recipe.steps):
        step_key = jax.random.fold_in(batch_key, step)
        embeds, optimizer_state, loss = _step(
            generator, recipe, first, embeds, optimizer_state, params, input_ids, pictures, step_key
        )
        on_step(step + 1, loss)
    return embeds


def _make_optimizer(recipe: InversionRecipe) -> optax.GradientTransformation:
    return optax.adamw(recipe.learning_rate, weight_decay=1e-2)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(
    generator: Generator,
    recipe: InversionRecipe,
    first: int,
    embeds: jax.Array,
    optimizer_state: optax.OptState,
    params: Params,
    input_ids: jax.Array,
    pictures: AdaptationSet,
    key: jax.Array,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    number = pictures.labels.shape[0]
    chosen = jax.random.randint(jax.random.fold_in(key, 0), (recipe.batch_size,), 0, number)
    batch = split_batch(pictures.take(chosen))

    def mean_loss(embeds: jax.Array) -> jax.Array:
        text_encoder = with_rows(params["text_encoder"], first, embeds)
        states = encode_tokens(generator, params | {"text_encoder": text_encoder}, input_ids[batch.labels])
        denoise = policy_denoiser(generator, params, Policy(), embeds_condition(generator, states), guidance_scale=1.0)
        return jnp.mean(denoising_loss(denoise, generator.schedule, batch.latents, jax.random.fold_in(key, 1)))

    loss, gradient = jax.value_and_grad(mean_loss)(embeds)
    updates, optimizer_state = _make_optimizer(recipe).update(gradient, optimizer_state, embeds)
    return optax.apply_updates(embeds, updates), optimizer_state, loss
