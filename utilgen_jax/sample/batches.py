"""Images in batches, each a function of its own prompt, seed and starting noise and of nothing else in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition, encode_images, noise_image_embeds, text_condition
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.sampling import encode_to_latents, initial_latents, sample, step_keys
from utilgen_jax.models.lora import Lora

_IMAGE_NOISE = 2  # folded into an image's key, of which `initial_latents` and `step_keys` make other use


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are made from their prompts and seeds.

    Attributes:
        num_steps, guidance_scale, scheduler, eta, strength: see `sampling.sample`.
        height, width: of the images, in pixels.
        negative_prompt: of the unconditional branch.
        batch_size: images at once.
        init_image: image to start from, float32 [height, width, 3] in [-1, 1].
        image_prompt: image that conditions an unCLIP checkpoint, float32 [H, W, 3] in [-1, 1], any size.
        noise_level: of the noise on its embedding, see `conditioning.noise_image_embeds`.
    """

    num_steps: int
    guidance_scale: float
    scheduler: str
    height: int
    width: int
    negative_prompt: str = ""
    batch_size: int = 4
    eta: float = 0.0
    strength: float = 1.0
    init_image: np.ndarray | None = None
    image_prompt: np.ndarray | None = None
    noise_level: int = 0


def generate_images(
    generator: Generator,
    params: Params,
    prompts: Sequence[str],
    seeds: np.ndarray,
    sampling: SamplingConfig,
    *,
    latents: np.ndarray | None = None,
    loras: Mapping[str, Lora] | None = None,
) -> Iterator[np.ndarray]:
    """Makes images batch by batch; the last batch is filled up, so that all have one shape and compile once.

    Args:
        generator: the checkpoint.
        params: its weights.
        prompts: N, one an image.
        seeds: int [N], 0 .. 2**31 - 1. All that is random in an image follows from its own.
        generating: what they have in common.
        latents: starting noise in place of the seeds', float32 [N, h, w, C].
        loras: low-rank terms by component.

    Yields:
        Float32 [batch size or what is left, height, width, 3] in [-1, 1].

    Raises:
        InputError: an image is not finite.
    """
    number, batch_size = len(prompts), min(sampling.batch_size, len(prompts))
    condition = text_condition(generator, params, prompts, sampling.negative_prompt, loras)
    if sampling.image_prompt is not None:
        labels = _image_labels(generator, params, sampling, seeds)
        condition = dataclasses.replace(condition, class_labels=labels)
    clean_latents = None
    if sampling.init_image is not None:
        clean_latents = encode_to_latents(generator, params, sampling.init_image[None])
    size = (sampling.height, sampling.width)
    for start in range(0, number, batch_size):
        rows = np.arange(start, start + batch_size).clip(max=number - 1)
        noise = jnp.asarray(latents[rows]) if latents is not None else initial_latents(generator, seeds[rows], size)
        own: Condition = jax.tree.map(lambda leaf, rows=rows: leaf[rows], condition)
        images = sample(
            generator,
            params,
            own,
            noise,
            num_steps=sampling.num_steps,
            guidance_scale=sampling.guidance_scale,
            scheduler=sampling.scheduler,
            eta=sampling.eta,
            strength=sampling.strength,
            clean_latents=None if clean_latents is None else jnp.repeat(clean_latents, batch_size, axis=0),
            loras=loras,
            keys=step_keys(seeds[rows]),
        )
        finished = np.asarray(images)[: number - start]
        broken = np.flatnonzero(~np.isfinite(finished).all(axis=(1, 2, 3)))
        if broken.size:
            raise InputError(
                f"image {start + broken[0]} holds NaN or infinity: half precision overflows in some checkpoints; "
                "try --vae_dtype=float32, then --dtype=float32"
            )
        yield finished


def _image_labels(generator: Generator, params: Params, sampling: SamplingConfig, seeds: np.ndarray) -> jax.Array:
    """unCLIP's class labels of the image prompt, noised for each image anew: float [N, 2E]."""
    embeds = encode_images(generator, params, jnp.asarray(sampling.image_prompt)[None])
    noise = draw_image_noise(jnp.asarray(seeds, jnp.int32), embeds.shape[1:])
    levels = jnp.full(len(seeds), sampling.noise_level, jnp.int32)
    return noise_image_embeds(generator, params, jnp.broadcast_to(embeds, noise.shape), levels, noise)


@partial(jax.jit, static_argnums=1)
def draw_image_noise(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise on unCLIP's image embeddings, each image's from its own seed: float32 [B, *shape] of int [B]."""

    def draw(seed: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), _IMAGE_NOISE), shape)

    return jax.vmap(draw)(seeds)
