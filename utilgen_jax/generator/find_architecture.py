"""The generator's architecture: of a checkpoint that is here, else as it was published, else of the hub's configs."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from utilgen_jax import checkpoints
from utilgen_jax.checkpoints.published import PUBLISHED, published_name
from utilgen_jax.diffusion.scheduler_fields import as_stable_diffusion
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.generator.loading import read_architecture
from utilgen_jax.generator.stable_diffusion import Architecture
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIP_MEAN, CLIP_STD, CLIPVisionModelWithProjection
from utilgen_jax.models.unet import UNet2DConditionModel


def find_architecture(
    checkpoint: str, revision: str | None, architecture: str | None, **settings: Any
) -> tuple[Architecture, str]:
    """Finds a generator's architecture; no weights are read or downloaded.

    Args:
        checkpoint: config.generator.checkpoint: 'glyphs', a name such as 'sd15', a folder, or a hub id.
        revision: of a hub id.
        architecture: one of `ARCHITECTURES`, in place of the checkpoint's; or None.
        **settings: dtype and gradient_checkpointing, see `read_architecture`.

    Returns:
        The architecture, and its origin, for people.

    Raises:
        InputError: the checkpoint is none, or neither here nor published nor on a hub that can be reached.
    """
    if architecture is None and (checkpoint in PUBLISHED or not Path(checkpoint).expanduser().exists()):
        architecture = published_name(checkpoint)
    if architecture is not None:
        return published_architecture(architecture, **settings), f"{architecture}, as published"
    try:
        folder = checkpoints.resolve_checkpoint(checkpoint, revision, configs_only=True)
    except InputError as error:
        names = ", ".join(ARCHITECTURES)
        raise InputError(f"{error}; or name a published architecture, --architecture=NAME ({names})") from None
    return read_architecture(folder, **settings), str(checkpoint)


def published_architecture(
    name: str, dtype: jnp.dtype = jnp.float32, gradient_checkpointing: str = "none"
) -> Architecture:
    """A published architecture without a tokenizer.

    Args:
        name: one of `ARCHITECTURES`.
        dtype: of activations.
        gradient_checkpointing: see `UNet2DConditionModel`.
    """
    configs = ARCHITECTURES[name]
    unclip, is_xl = "image_encoder" in configs, "text_encoder_2" in configs
    return Architecture(
        unet=UNet2DConditionModel.from_config(configs["unet"], dtype, gradient_checkpointing),
        vae=AutoencoderKL.from_config(configs["vae"], dtype),
        text_encoder=CLIPTextModel.from_config(configs["text_encoder"], dtype),
        image_encoder=CLIPVisionModelWithProjection.from_config(configs["image_encoder"], dtype) if unclip else None,
        tokenizer=None,
        schedule=load_schedule(configs["scheduler"] if is_xl else as_stable_diffusion(configs["scheduler"])),
        image_noising_schedule=load_schedule(configs["image_noising_scheduler"]) if unclip else None,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        text_encoder_2=CLIPTextModelWithProjection.from_config(configs["text_encoder_2"], dtype) if is_xl else None,
        zeros_for_empty_prompt=is_xl,
    )
