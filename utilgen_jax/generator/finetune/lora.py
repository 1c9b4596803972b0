"""Adapts the generator to images by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.generator.finetune.denoising import (
    DenoisingSet,
    DenoisingTask,
    Prompts,
    adapter_loss,
    are_token_ids,
    train_by_denoising,
)
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import PooledStates
from utilgen_jax.models.difficulty import DifficultyEncoder, with_zero_token
from utilgen_jax.models.lora import init_lora
from utilgen_jax.runtime.training_loop import TrainingLoop


def train_lora(
    sd: StableDiffusion,
    prompts: Prompts,
    examples: DenoisingSet,
    prior: DenoisingSet | None,
    config: LoraConfig,
    key: jax.Array,
    loop: TrainingLoop,
    zero_token: bool = False,
) -> Adapter:
    """Fits a LoRA to images, as DataDream does, and a difficulty encoder with it if their difficulty is known.

    DataDream: arXiv 2407.10910. Difficulty: arXiv 2411.18109, both together on the plain denoising loss. The prior
    images are ours.

    Args:
        sd: the checkpoint, which stays as it is.
        prompts: of each class; a LoRA on the text encoders needs token ids.
        examples: the images to learn from.
        prior: images of the generator itself, with difficulties if `examples` has them; None where the
            config's batches hold none.
        config: rank, steps, batch and learning rate.
        key: PRNG key.
        loop: runs the steps.
        zero_token: whether the difficulty encoder's token is zero before the first step, and not random.

    Returns:
        An adapter with `unet_lora`; with a rank for them LoRAs of all text encoders; with difficulties
        `difficulty_encoder`.
    """
    init_key, train_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    adapter = Adapter(unet_lora=init_lora(sd.params["unet"], init_key, rank=config.rank).factors)
    if config.text_encoder_rank:
        loras: dict[str, Any] = {
            f"{name}_lora": init_lora(
                sd.params[name], jax.random.fold_in(init_key, use), rank=config.text_encoder_rank
            ).factors
            for use, name in enumerate(sd.architecture.text_encoders, 2)
        }
        adapter = dataclasses.replace(adapter, **loras)
    if examples.difficulties is not None:
        states = prompts.states if isinstance(prompts, PooledStates) else prompts
        width = sd.architecture.text_width if are_token_ids(prompts) else states.shape[-1]
        encoder = DifficultyEncoder(len(prompts), width)
        variables = encoder.init(jax.random.fold_in(init_key, 1), examples.labels[:1], examples.difficulties[:1])
        params = with_zero_token(variables["params"]) if zero_token else variables["params"]
        adapter = dataclasses.replace(adapter, difficulty_encoder=params)
    task = DenoisingTask(adapter_loss, prompts, examples, prior)
    return train_by_denoising(sd, task, adapter, config, train_key, loop)
