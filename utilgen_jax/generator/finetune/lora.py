"""Adapts the generator to pictures by the denoising loss: a LoRA alone, or with an encoder of their difficulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.adapter import Policy, difficulty_encoder_of, policy_denoiser
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.difficulty_token import append_difficulty_token
from utilgen_jax.generator.finetune.denoising import DenoisingRecipe, DenoisingSet, train_by_denoising
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora


@dataclasses.dataclass(frozen=True)
class AdaptationRecipe(DenoisingRecipe):
    """How the policy is fitted.

    Attributes:
      lora_rank: of the factors on the UNet's attention.
    """

    lora_rank: int


def adapt(
    generator: Generator,
    params: Params,
    class_embeds: jax.Array,
    pictures: DenoisingSet,
    prior: DenoisingSet,
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
    init_key, train_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    policy = Policy(unet_lora=init_lora(params["unet"], init_key, rank=recipe.lora_rank).factors)
    if pictures.difficulties is not None:
        encoder = DifficultyEncoder(len(class_embeds), class_embeds.shape[-1])
        variables = encoder.init(jax.random.fold_in(init_key, 1), pictures.labels[:1], pictures.difficulties[:1])
        policy = dataclasses.replace(policy, difficulty_encoder=variables["params"])
    return train_by_denoising(
        generator, params, adaptation_loss, policy, class_embeds, pictures, prior, recipe, train_key, on_step
    )


def adaptation_loss(
    generator: Generator,
    params: Params,
    policy: Policy,
    class_embeds: jax.Array,
    batch: DenoisingSet,
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
