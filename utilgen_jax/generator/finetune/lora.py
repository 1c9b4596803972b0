"""Adapts the generator to images by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, difficulty_encoder_of
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.difficulty_token import append_difficulty_token
from utilgen_jax.generator.finetune.denoising import DenoisingConfig, DenoisingSet, train_by_denoising
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora


@dataclasses.dataclass(frozen=True)
class LoraConfig(DenoisingConfig):
    """How the adapter is fitted.

    Attributes:
        lora_rank: of the factors on the UNet's attention.
    """

    lora_rank: int


def train_lora(
    generator: Generator,
    params: Params,
    class_embeds: jax.Array,
    images: DenoisingSet,
    prior: DenoisingSet,
    config: LoraConfig,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Adapter:
    """Fits a LoRA to images, as DataDream does, and a difficulty encoder with it where their difficulty is known.

    DataDream: arXiv 2407.10910. Difficulty: arXiv 2411.18109, both together on the plain denoising loss. The prior
    images are ours.

    Args:
        generator: the checkpoint's architecture.
        params: its weights, which stay as they are.
        class_embeds: text states of each class's prompt, float [K, T, D].
        images: what to learn from.
        prior: images of the generator itself, with difficulties if `images` has them.
        config: how.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device).

    Returns:
        An adapter with `unet_lora` and, with difficulties, `difficulty_encoder`.
    """
    init_key, train_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    adapter = Adapter(unet_lora=init_lora(params["unet"], init_key, rank=config.lora_rank).factors)
    if images.difficulties is not None:
        encoder = DifficultyEncoder(len(class_embeds), class_embeds.shape[-1])
        variables = encoder.init(jax.random.fold_in(init_key, 1), images.labels[:1], images.difficulties[:1])
        adapter = dataclasses.replace(adapter, difficulty_encoder=variables["params"])
    return train_by_denoising(
        generator, params, lora_loss_of_labels, adapter, class_embeds, images, prior, config, train_key, on_step
    )


def lora_loss_of_labels(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    class_embeds: jax.Array,
    batch: DenoisingSet,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """The denoising loss of each image under the adapter, float32 [B]; `key` is of timesteps and noise."""
    embeds = class_embeds[batch.labels]
    if adapter.difficulty_encoder is not None and batch.difficulties is not None:
        encoder = difficulty_encoder_of(adapter.difficulty_encoder)
        embeds = append_difficulty_token(encoder, adapter.difficulty_encoder, embeds, batch.labels, batch.difficulties)
    denoise = adapter_denoiser(generator, params, adapter, embeds_condition(generator, embeds), guidance_scale=1.0)
    return denoising_loss(denoise, generator.schedule, batch.latents, key, snr_gamma)
