"""Learns a word for each class from its images: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import encode_tokens
from utilgen_jax.generator.finetune.denoising import DenoisingConfig, DenoisingSet, train_by_denoising
from utilgen_jax.generator.finetune.lora import lora_loss_of_labels
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.tokens import add_tokens, with_rows


def class_tokens(num_classes: int) -> list[str]:
    """What the learnt words are called: `<class-0>`, `<class-1>` ..."""
    return [f"<class-{label}>" for label in range(num_classes)]


def initial_embeds(generator: Generator, params: Params, class_names: Sequence[str]) -> jax.Array:
    """What the words start from: the mean of the embeddings of the class name's own tokens, float32 [K, D]."""
    input_ids = checkpoints.tokenize(generator.tokenizer, class_names)
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
    images: DenoisingSet,
    prior: DenoisingSet,
    config: DenoisingConfig,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> jax.Array:
    """Learns one embedding a class by the denoising loss; all else stays as it is. The prior images are ours.

    Args:
        generator: the checkpoint.
        params: its weights.
        prompts: one a class, in which its token stands, see `class_tokens`.
        initial: what to start from, float32 [K, D].
        images: of all classes.
        prior: images of the generator itself, made with the classes' own names.
        config: how.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device).

    Returns:
        Float32 [K, D], for `textual_inversion.add_tokens`.
    """
    generator, params = add_tokens(generator, params, class_tokens(len(prompts)), initial)
    input_ids = jnp.asarray(checkpoints.tokenize(generator.tokenizer, prompts))
    return train_by_denoising(generator, params, _loss, initial, input_ids, images, prior, config, key, on_step)


def _loss(
    generator: Generator,
    params: Params,
    embeds: jax.Array,
    input_ids: jax.Array,
    batch: DenoisingSet,
    key: jax.Array,
    snr_gamma: float | None,
) -> jax.Array:
    text_encoder = with_rows(params["text_encoder"], len(generator.tokenizer) - len(embeds), embeds)
    # Only the words of this batch: there may be a thousand classes.
    states = encode_tokens(generator, params | {"text_encoder": text_encoder}, input_ids[batch.labels])
    batch = dataclasses.replace(batch, labels=jnp.arange(len(states)))
    return lora_loss_of_labels(generator, params, Adapter(), states, batch, key, snr_gamma)
