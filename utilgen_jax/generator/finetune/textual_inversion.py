"""Learns a token for each class from its images: textual inversion (Gal et al. 2022, arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.config import DenoisingConfig
from utilgen_jax.generator.finetune.denoising import (
    DenoisingSet,
    DenoisingTask,
    Prompts,
    adapter_loss,
    train_by_denoising,
)
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.tokens import add_tokens, check_token_rows, tokenize_prompts, with_last_rows
from utilgen_jax.runtime.training_loop import TrainingLoop


def class_tokens(num_classes: int) -> list[str]:
    """Names of the learned tokens: `<class-0>`, `<class-1>` ..."""
    return [f"<class-{label}>" for label in range(num_classes)]


def initial_embeds(sd: StableDiffusion, class_names: Sequence[str]) -> jax.Array:
    """The start of training: the mean of the embeddings of each class name's own tokens, float32 [K, D].

    D is the width of the text encoder, or of both side by side.
    """
    means = []
    for name, (module, tokenizer) in sd.architecture.text_encoders.items():
        input_ids = checkpoints.tokenize(tokenizer, class_names)
        check_token_rows(tokenizer, input_ids, module.vocab_size)
        is_word = ~np.isin(input_ids, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
        embeds = module.apply(sd.variables(name), jnp.asarray(input_ids), method="embed_tokens")
        share = is_word / np.maximum(is_word.sum(1, keepdims=True), 1)
        means.append(jnp.einsum("kt,ktd->kd", share, embeds.astype(jnp.float32)))
    return jnp.concatenate(means, axis=1)


def train_textual_inversion(
    sd: StableDiffusion,
    prompts: Sequence[str],
    initial: jax.Array,
    examples: DenoisingSet,
    prior: DenoisingSet | None,
    config: DenoisingConfig,
    key: jax.Array,
    loop: TrainingLoop,
) -> jax.Array:
    """Learns one embedding for each class by the denoising loss; all weights stay as they are.

    The prior images are ours.

    Args:
        sd: the checkpoint.
        prompts: one for each class, with its token in it, see `class_tokens`.
        initial: the start, float32 [K, D].
        examples: images of all classes.
        prior: images of the generator itself, from prompts with the classes' own names; None where the config's batches
            hold none.
        config: steps, batch and learning rate.
        key: PRNG key.
        loop: runs the steps.

    Returns:
        Float32 [K, D], for `tokens.add_tokens`.
    """
    sd = add_tokens(sd, class_tokens(len(prompts)), initial)
    input_ids = jnp.asarray(tokenize_prompts(sd, prompts))
    task = DenoisingTask(token_loss, input_ids, examples, prior)
    return train_by_denoising(sd, task, initial, config, key, loop)


def token_loss(
    sd: StableDiffusion,
    embeds: jax.Array,
    input_ids: Prompts,
    batch: DenoisingSet,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """The denoising loss of each image with embeddings float32 [K, D] in the last rows of the token tables.

    Args:
        sd: the checkpoint with the tokens, see `tokens.add_tokens`.
        embeds: differentiated.
        input_ids: token ids of each class's prompt.
        batch, key, snr_gamma: see `denoising.adapter_loss`.
    """
    # Token ids, so that only the prompts of this batch are encoded: there may be a thousand classes.
    return adapter_loss(with_last_rows(sd, embeds), Adapter(), input_ids, batch, key, snr_gamma)
