"""Images in batches, each a function of its own prompt, seed and starting noise and of nothing else in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import (
    Condition,
    embeds_condition,
    encode_images,
    encode_prompts,
    image_class_labels,
    negative_states,
)
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.sampling import (
    check_finite_images,
    encode_to_latents,
    initial_latents,
    mask_image,
    sample,
    step_keys,
)
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes
from utilgen_jax.generator.weighted_prompts import encode_weighted_prompts
from utilgen_jax.models.lora import Lora


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """What images start from besides seeds, as the generator takes it; None for what is not given.

    Attributes:
        latents: starting noise in place of the seeds', float32 [N, h, w, C].
        init_image: image to start from, float32 [height, width, 3] in [-1, 1].
        mask: for a checkpoint for inpainting, 1 where `init_image` is to be generated anew, float32 [height, width, 1].
        image_prompt: image that conditions an unCLIP checkpoint, float32 [H, W, 3] in [-1, 1], any size.
        noise_level: of the noise on its embedding, see `conditioning.noise_image_embeds`.
        weighted_prompts: whether prompts are read as `weighted_prompts` does.
        clip_skip: see `conditioning.encode_tokens`.
        sizes: what Stable Diffusion XL is told of the images' sizes; None for those of the sampling.
    """

    latents: np.ndarray | None = None
    init_image: np.ndarray | None = None
    mask: np.ndarray | None = None
    image_prompt: np.ndarray | None = None
    noise_level: int = 0
    weighted_prompts: bool = False
    clip_skip: int = 0
    sizes: ImageSizes | None = None


def generate_images(
    sd: StableDiffusion,
    prompts: Sequence[str],
    seeds: np.ndarray,
    sampling: SamplingConfig,
    inputs: ImageInputs | None = None,
    loras: Mapping[str, Lora] | None = None,
) -> Iterator[np.ndarray]:
    """Generates images batch by batch; the last batch is filled up, so that all have one shape and compile once.

    Args:
        sd: the checkpoint.
        prompts: N, one an image.
        seeds: int [N], 0 .. 2**64 - 1. All that is random in an image follows from its own.
        sampling: of all images.
        inputs: what they start from besides; None for nothing.
        loras: low-rank terms by component.

    Yields:
        Float32 [batch size or the rest, height, width, 3] in [-1, 1].

    Raises:
        InputError: an image is not finite.
    """
    inputs = inputs or ImageInputs()
    number, batch_size = len(prompts), min(sampling.batch_size, len(prompts))
    if inputs.weighted_prompts:
        of_all = encode_weighted_prompts(sd, [*prompts, sampling.negative_prompt], loras, inputs.clip_skip)
        states, negative = of_all[:-1], of_all[-1:]
    else:  # as in diffusers, no layers are skipped for the negative prompt
        states = encode_prompts(sd, prompts, loras, inputs.clip_skip)
        negative = encode_prompts(sd, [sampling.negative_prompt], loras)
    negative = negative_states(sd, sampling.negative_prompt, negative)
    condition = embeds_condition(sd, states, negative, inputs.sizes or ImageSizes.of(sampling.size))
    if inputs.image_prompt is not None:
        image_embeds = encode_images(sd, jnp.asarray(inputs.image_prompt)[None])
        labels = image_class_labels(sd, image_embeds, seeds, inputs.noise_level)
        condition = dataclasses.replace(condition, class_labels=labels)
    clean_latents = None
    if inputs.init_image is not None and inputs.mask is not None:
        masked = mask_image(sd, jnp.asarray(inputs.init_image)[None], jnp.asarray(inputs.mask)[None])
        condition = dataclasses.replace(condition, masked=jnp.repeat(masked, number, axis=0))
    # As in diffusers, a mask's images of full strength begin from noise alone.
    if inputs.init_image is not None and (inputs.mask is None or sampling.strength < 1):
        clean_latents = jnp.repeat(encode_to_latents(sd, inputs.init_image[None]), batch_size, axis=0)
    for start in range(0, number, batch_size):
        rows = np.arange(start, start + batch_size).clip(max=number - 1)
        if inputs.latents is None:
            latents = initial_latents(sd.architecture, seeds[rows], sampling.size)
        else:
            latents = jnp.asarray(inputs.latents[rows])
        own: Condition = jax.tree.map(lambda leaf, rows=rows: leaf[rows], condition)
        images = sample(
            sd, own, latents, sampling, loras=loras, keys=step_keys(seeds[rows]), clean_latents=clean_latents
        )
        finished = np.asarray(images)[: number - start]
        check_finite_images(finished, sd.architecture, start, InputError)
        yield finished
