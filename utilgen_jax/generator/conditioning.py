"""What conditions the generator: prompts through CLIP's text tower, images through its vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import add_noise
from utilgen_jax.errors import InputError
from utilgen_jax.generator.clip_towers import image_tower_of
from utilgen_jax.generator.seeds import folded_keys, normal_of_keys, seed_keys
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.tokens import tokenize_prompts
from utilgen_jax.models.embeddings import timestep_embedding
from utilgen_jax.models.lora import Lora

if TYPE_CHECKING:
    from utilgen_jax.generator.feedback import Feedback

_IMAGE_NOISE = 2  # folded into an image's key; `sampling.initial_latents` and `step_keys` use other numbers


@struct.dataclass
class Condition:
    """What a batch of images is generated from; every leaf is batch-first, but those of the feedback.

    Attributes:
        prompt_embeds: float [B, T, D], CLIP text states.
        negative_prompt_embeds: float [B, T, D], those of the unconditional branch.
        class_labels: unCLIP image embedding and its noise level, float [B, 2E]; zeros where no image conditions; None
            where the UNet has no class embedding.
        masked: what a UNet for inpainting also sees, [B, h, w, 1 + C], see `mask_image`; None for any other.
        feedback: a classifier that leads the sampler, or None.
    """

    prompt_embeds: jax.Array
    negative_prompt_embeds: jax.Array
    class_labels: jax.Array | None
    feedback: Feedback | None = None
    masked: jax.Array | None = None


@partial(jax.jit, static_argnames="clip_skip")
def encode_tokens(
    sd: StableDiffusion, input_ids: jax.Array, loras: Mapping[str, Lora] | None = None, clip_skip: int = 0
) -> jax.Array:
    """CLIP text states of token ids: float [B, T, D].

    Args:
        sd: the checkpoint.
        input_ids: int [B, T].
        loras: low-rank terms by component; that of 'text_encoder' is used.
        clip_skip: number of last layers that are left out.
    """
    variables = sd.variables("text_encoder", loras)
    if clip_skip:
        return sd.text_encoder.apply(variables, input_ids, clip_skip, method="skipping")
    return sd.text_encoder.apply(variables, input_ids).last_hidden_state


def encode_prompts(
    sd: StableDiffusion, prompts: Sequence[str], loras: Mapping[str, Lora] | None = None, clip_skip: int = 0
) -> jax.Array:
    """CLIP text states of prompts, each distinct prompt computed once: float [len(prompts), T, D]."""
    distinct = sorted(set(prompts))
    embeds = encode_tokens(sd, jnp.asarray(tokenize_prompts(sd, distinct)), loras, clip_skip)
    return embeds[np.array([distinct.index(prompt) for prompt in prompts])]


def text_condition(
    sd: StableDiffusion,
    prompts: Sequence[str],
    negative_prompt: str = "",
    loras: Mapping[str, Lora] | None = None,
) -> Condition:
    """The condition of images that are generated from text alone."""
    embeds = encode_prompts(sd, [*prompts, negative_prompt], loras)
    return embeds_condition(sd, embeds[:-1], embeds[-1:])


def embeds_condition(
    sd: StableDiffusion, prompt_embeds: jax.Array, negative_prompt_embeds: jax.Array | None = None
) -> Condition:
    """The condition of images of text states [B, T, D].

    Args:
        sd: the checkpoint; for an unCLIP one the class labels are those of no image.
        prompt_embeds: of the prompts.
        negative_prompt_embeds: of the unconditional branch, [B, T, D] or [1, T, D]; None without guidance.
    """
    negative = prompt_embeds if negative_prompt_embeds is None else negative_prompt_embeds
    class_labels = None
    if sd.unet.class_embed_type is not None:
        width = sd.unet.projection_class_embeddings_input_dim
        class_labels = jnp.zeros((len(prompt_embeds), width), prompt_embeds.dtype)
    return Condition(prompt_embeds, jnp.broadcast_to(negative, prompt_embeds.shape), class_labels)


@jax.jit
def encode_images(sd: StableDiffusion, images: jax.Array) -> jax.Array:
    """CLIP image embeddings by an unCLIP checkpoint's image encoder, see `ImageTower.embed`: float [B, E].

    Raises:
        InputError: the checkpoint has no image encoder.
    """
    return image_tower_of(sd).embed(images)


def noise_image_embeds(
    sd: StableDiffusion, image_embeds: jax.Array, noise_level: jax.Array, noise: jax.Array
) -> jax.Array:
    """unCLIP's class labels: the image embedding, noised to a level, and that level's embedding.

    As in diffusers' StableUnCLIPImg2ImgPipeline: noise is added in the normaliser's whitened space.

    Args:
        sd: an unCLIP checkpoint.
        image_embeds: float [B, E].
        noise_level: int32 [B], a timestep of the image noising schedule; 0 is nearly none.
        noise: standard normal, float [B, E].

    Returns:
        Float [B, 2E].
    """
    schedule = sd.architecture.image_noising_schedule
    if schedule is None:
        raise InputError("this checkpoint has no image_noising_scheduler; it is not an unCLIP checkpoint")
    mean, std = sd.params["image_normalizer"]["mean"], sd.params["image_normalizer"]["std"]
    noisy = add_noise(schedule, (image_embeds - mean) / std, noise, noise_level) * std + mean
    level = timestep_embedding(noise_level, image_embeds.shape[-1], flip_sin_to_cos=True, freq_shift=0)
    return jnp.concatenate([noisy, level], axis=-1)


def image_class_labels(
    sd: StableDiffusion, image_embeds: jax.Array, seeds: np.ndarray, noise_level: int = 0
) -> jax.Array:
    """unCLIP's class labels of image embeddings, with the noise of each image's own seed: float [B, 2E].

    Args:
        sd: an unCLIP checkpoint.
        image_embeds: float [B, E], or [1, E] for all.
        seeds: int [B], 0 .. 2**64 - 1.
        noise_level: see `noise_image_embeds`.
    """
    noise = normal_of_keys(folded_keys(seed_keys(seeds), _IMAGE_NOISE), image_embeds.shape[1:])
    levels = jnp.full(len(noise), noise_level, jnp.int32)
    return noise_image_embeds(sd, jnp.broadcast_to(image_embeds, noise.shape), levels, noise)
