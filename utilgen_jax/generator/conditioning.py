"""What conditions the generator: prompts through CLIP's text towers, images through its vision tower, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import add_noise
from utilgen_jax.errors import InputError
from utilgen_jax.generator.clip_towers import image_tower_of
from utilgen_jax.generator.seeds import folded_keys, normal_of_keys, seed_keys
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes, PooledStates, TextStates
from utilgen_jax.generator.tokens import tokenize_prompts
from utilgen_jax.models.embeddings import timestep_embedding
from utilgen_jax.models.lora import Lora

if TYPE_CHECKING:
    from utilgen_jax.generator.feedback import Feedback

_PROMPTS_AT_ONCE = 8
_IMAGE_NOISE = 2  # folded into an image's key; `sampling.initial_latents` and `step_keys` use other numbers


@struct.dataclass
class Condition:
    """What a batch of images is generated from; every leaf is batch-first, but those of the feedback.

    Attributes:
        prompt_embeds: float [B, T, D], CLIP text states.
        negative_prompt_embeds: float [B, T, D], those of the unconditional branch.
        class_labels: unCLIP image embedding and its noise level, float [B, 2E], zeros where no image conditions; of XL
            the pooled text state and the image's sizes, float32 [B, P + 6]; None where the UNet takes neither.
        masked: what a UNet for inpainting also sees, [B, h, w, 1 + C], see `mask_image`; None for any other.
        feedback: a classifier that leads the sampler, or None.
        negative_class_labels: those of the unconditional branch; None for zeros.
    """

    prompt_embeds: jax.Array
    negative_prompt_embeds: jax.Array
    class_labels: jax.Array | None
    feedback: Feedback | None = None
    masked: jax.Array | None = None
    negative_class_labels: jax.Array | None = None

    def branches(self) -> dict[str, Any]:
        """The arguments of `samplers.guided` that are of the condition."""
        return {
            "prompt_embeds": self.prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
            "class_labels": self.class_labels,
            "negative_class_labels": self.negative_class_labels,
        }


@partial(jax.jit, static_argnames="clip_skip")
def encode_tokens(
    sd: StableDiffusion, input_ids: jax.Array, loras: Mapping[str, Lora] | None = None, clip_skip: int = 0
) -> TextStates:
    """CLIP text states of token ids.

    Args:
        sd: the checkpoint.
        input_ids: int [B, T]; for two text encoders int [B, 2, T].
        loras: low-rank terms by component; those of text encoders are used.
        clip_skip: number of last layers that are left out, for XL besides the one that it never uses.
    """
    if sd.architecture.text_encoder_2 is not None:
        outputs = [
            module.apply(sd.variables(name, loras), input_ids[:, place])
            for place, (name, (module, _)) in enumerate(sd.architecture.text_encoders.items())
        ]
        states = [output.hidden_states[-(clip_skip + 2)] for output in outputs]
        return PooledStates(jnp.concatenate(states, axis=-1), outputs[1].text_embeds)
    variables = sd.variables("text_encoder", loras)
    if clip_skip:
        return sd.text_encoder.apply(variables, input_ids, clip_skip, method="skipping")
    return sd.text_encoder.apply(variables, input_ids).last_hidden_state


def encode_prompts(
    sd: StableDiffusion, prompts: Sequence[str], loras: Mapping[str, Lora] | None = None, clip_skip: int = 0
) -> TextStates:
    """CLIP text states of prompts, each distinct prompt computed once.

    In batches of one size, the last one filled up, so that whatever their number they compile once.
    """
    distinct, places = np.unique(np.asarray(prompts, object), return_inverse=True)
    size = 1 if len(distinct) == 1 else _PROMPTS_AT_ONCE
    ids = tokenize_prompts(sd, [*distinct, *distinct[-1:].repeat(-len(distinct) % size)])
    parts = [
        encode_tokens(sd, jnp.asarray(ids[start : start + size]), loras, clip_skip)
        for start in range(0, len(ids), size)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[places], *parts)


def encode_negative_prompt(sd: StableDiffusion, prompt: str, loras: Mapping[str, Lora] | None = None) -> TextStates:
    """Text states of a negative prompt, see `negative_states`."""
    return negative_states(sd, prompt, encode_prompts(sd, [prompt], loras))


def negative_states(sd: StableDiffusion, prompt: str, states: TextStates) -> TextStates:
    """The states of a negative prompt, zero where the checkpoint takes an empty one for no text at all."""
    if prompt or not sd.architecture.zeros_for_empty_prompt:
        return states
    return jax.tree.map(jnp.zeros_like, states)


def text_condition(
    sd: StableDiffusion,
    prompts: Sequence[str],
    negative_prompt: str = "",
    loras: Mapping[str, Lora] | None = None,
    *,
    sizes: ImageSizes | None = None,
) -> Condition:
    """The condition of images that are generated from text alone; XL needs their sizes."""
    states = encode_prompts(sd, [*prompts, negative_prompt], loras)
    return embeds_condition(sd, states[:-1], negative_states(sd, negative_prompt, states[-1:]), sizes)


def embeds_condition(
    sd: StableDiffusion,
    states: TextStates,
    negative: TextStates | None = None,
    sizes: ImageSizes | None = None,
) -> Condition:
    """The condition of images of B text states.

    Args:
        sd: the checkpoint; for an unCLIP one the class labels are those of no image.
        states: of the prompts.
        negative: of the unconditional branch, B or one; None without guidance.
        sizes: of the images; of use to XL, which needs them.

    Raises:
        InputError: XL is told no sizes.
    """
    negative = states if negative is None else negative
    if isinstance(states, PooledStates) or isinstance(negative, PooledStates):
        assert isinstance(states, PooledStates) and isinstance(negative, PooledStates)
        if sizes is None:
            raise InputError(
                "Stable Diffusion XL is told the sizes of images: give sizes=ImageSizes.of((height, width))"
            )
        numbers = jnp.array(sizes.numbers(), jnp.float32)

        def labels(pooled: jax.Array) -> jax.Array:
            pooled = jnp.broadcast_to(pooled, (len(states), pooled.shape[1])).astype(jnp.float32)
            return jnp.concatenate([pooled, jnp.broadcast_to(numbers, (len(states), len(numbers)))], axis=1)

        shape = states.states.shape
        return Condition(
            prompt_embeds=states.states,
            negative_prompt_embeds=jnp.broadcast_to(negative.states, shape),
            class_labels=labels(states.pooled),
            negative_class_labels=labels(negative.pooled),
        )
    class_labels = None
    if sd.unet.class_embed_type is not None:
        width = sd.unet.projection_class_embeddings_input_dim
        class_labels = jnp.zeros((len(states), width), states.dtype)
    return Condition(states, jnp.broadcast_to(negative, states.shape), class_labels)


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
