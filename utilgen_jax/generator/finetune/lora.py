"""Adapts the generator to images by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.generator.finetune.denoising import (
    DenoisingSet,
    DenoisingTask,
    adapter_loss,
    train_by_denoising,
)
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora


def train_lora(
    sd: StableDiffusion,
    class_embeds: jax.Array,
    examples: DenoisingSet,
    prior: DenoisingSet,
    config: LoraConfig,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Adapter:
    """Fits a LoRA to images, as DataDream does, and a difficulty encoder with it if their difficulty is known.

    DataDream: arXiv 2407.10910. Difficulty: arXiv 2411.18109, both together on the plain denoising loss. The prior
    images are ours.

    Args:
        sd: the checkpoint, which stays as it is.
        class_embeds: text states of each class's prompt, float [K, T, D].
        examples: the images to learn from.
        prior: images of the generator itself, with difficulties if `examples` has them.
        config: rank, steps, batch and learning rate.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device).

    Returns:
        An adapter with `unet_lora` and, with difficulties, `difficulty_encoder`.
    """
    init_key, train_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    adapter = Adapter(unet_lora=init_lora(sd.params["unet"], init_key, rank=config.rank).factors)
    if examples.difficulties is not None:
        encoder = DifficultyEncoder(len(class_embeds), class_embeds.shape[-1])
        variables = encoder.init(jax.random.fold_in(init_key, 1), examples.labels[:1], examples.difficulties[:1])
        adapter = dataclasses.replace(adapter, difficulty_encoder=variables["params"])
    task = DenoisingTask(adapter_loss, class_embeds, examples, prior)
    return train_by_denoising(sd, task, adapter, config, train_key, on_step)
