"""Adapts the generator to images by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses

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
from utilgen_jax.runtime.training_loop import TrainingLoop


def train_lora(
    sd: StableDiffusion,
    prompts: jax.Array,
    examples: DenoisingSet,
    prior: DenoisingSet | None,
    config: LoraConfig,
    key: jax.Array,
    loop: TrainingLoop,
) -> Adapter:
    """Fits a LoRA to images, as DataDream does, and a difficulty encoder with it if their difficulty is known.

    DataDream: arXiv 2407.10910. Difficulty: arXiv 2411.18109, both together on the plain denoising loss. The prior
    images are ours.

    Args:
        sd: the checkpoint, which stays as it is.
        prompts: of each class: text states float [K, T, D], or token ids int [K, T], which a LoRA on the text encoder
            needs.
        examples: the images to learn from.
        prior: images of the generator itself, with difficulties if `examples` has them; None where the
            config's batches hold none.
        config: rank, steps, batch and learning rate.
        key: PRNG key.
        loop: runs the steps.

    Returns:
        An adapter with `unet_lora`; with a rank for it `text_encoder_lora`; with difficulties `difficulty_encoder`.
    """
    init_key, train_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    adapter = Adapter(unet_lora=init_lora(sd.params["unet"], init_key, rank=config.rank).factors)
    if config.text_encoder_rank:
        lora_key = jax.random.fold_in(init_key, 2)
        lora = init_lora(sd.params["text_encoder"], lora_key, rank=config.text_encoder_rank)
        adapter = dataclasses.replace(adapter, text_encoder_lora=lora.factors)
    if examples.difficulties is not None:
        width = sd.text_encoder.hidden_size if prompts.ndim == 2 else prompts.shape[-1]
        encoder = DifficultyEncoder(len(prompts), width)
        variables = encoder.init(jax.random.fold_in(init_key, 1), examples.labels[:1], examples.difficulties[:1])
        adapter = dataclasses.replace(adapter, difficulty_encoder=variables["params"])
    task = DenoisingTask(adapter_loss, prompts, examples, prior)
    return train_by_denoising(sd, task, adapter, config, train_key, loop)
