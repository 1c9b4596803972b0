"""From pairs of real images to what the generator is told by them: image embeddings, or latents to start from."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.generator.conditioning import Condition, encode_images, noise_image_embeds
from utilgen_jax.generator.image_mixing import Way, augmentation_keys, mix_image_embeds, mix_images
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.sample.batches import draw_image_noise


def condition_on_images(
    generator: Generator,
    params: Params,
    condition: Condition,
    way: Way,
    first: jax.Array,
    second: jax.Array,
    seeds: np.ndarray,
    noise_level: int = 0,
) -> tuple[Condition, jax.Array | None]:
    """Adds real images to a condition, in a way of augmented conditioning (arXiv 2502.04475).

    Args:
        generator: a checkpoint; with an image encoder (unCLIP) it is told the images, without one it starts from them.
        params: its weights.
        condition: of B images, see `conditioning.text_condition`.
        way: see `augmented_conditions.find_way`.
        first: float32 [B, S, S, 3] in [-1, 1]; S is the side of the images to be made, where there is no image encoder.
        second: the same; each of the class of its first.
        seeds: int [B], 0 .. 2**31 - 1; all that is random follows from an image's own.
        noise_level: of the noise on image embeddings, see `conditioning.noise_image_embeds`; 0 in the paper.

    Returns:
        The condition, and latents float32 [B, h, w, C] for `sampling.sample` to start from; None with an image encoder.
    """
    keys = augmentation_keys(seeds)
    if generator.image_encoder is None:
        return condition, encode_to_latents(generator, params, mix_images(way, first, second, keys))
    embeds = mix_image_embeds(way, partial(encode_images, generator, params), first, second, keys)
    noise = draw_image_noise(jnp.asarray(seeds, jnp.int32), embeds.shape[1:])
    levels = jnp.full(len(embeds), noise_level, jnp.int32)
    labels = noise_image_embeds(generator, params, embeds, levels, noise)
    return dataclasses.replace(condition, class_labels=labels), None
