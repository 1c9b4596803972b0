"""Pictures from conditions: noise, sampler and autoencoder in one pure function."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.samplers import ddim_sample, guided
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.parallel import split_batch


def initial_latents(generator: Generator, seeds: np.ndarray, image_size: int) -> jax.Array:
    """Standard normal latents, each picture's from its own seed, so that batching changes nothing.

    Args:
      generator: gives the latents' channels and scale.
      seeds: int [B], 0 .. 2**31 - 1.
      image_size: pixels a side.

    Returns:
      Float32 [B, h, w, C].
    """
    side = image_size // generator.vae_scale_factor
    shape = (side, side, generator.unet.in_channels)
    return _normal(jnp.asarray(seeds, jnp.int32), shape)


@partial(jax.jit, static_argnames="shape")
def _normal(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def decode_latents(generator: Generator, params: Params, latents: jax.Array) -> jax.Array:
    """Pictures of latents [B, h, w, C]: float32 [B, H, W, 3] in [-1, 1]."""
    scaled = latents / generator.vae.scaling_factor
    images = generator.vae.apply({"params": params["vae"]}, scaled, method="decode")
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


@partial(jax.jit, static_argnames=("generator", "num_steps", "guidance_scale"))
def sample(
    generator: Generator,
    params: Params,
    condition: Condition,
    latents: jax.Array,
    *,
    num_steps: int,
    guidance_scale: float,
) -> jax.Array:
    """Text (and picture) to pictures: DDIM with classifier-free guidance, then the decoder.

    Args:
      generator: the checkpoint's architecture (static).
      params: its weights.
      condition: of B pictures.
      latents: standard normal, float32 [B, h, w, C], see `initial_latents`.
      num_steps: denoiser calls.
      guidance_scale: 1 or less means none.

    Returns:
      Float32 [B, H, W, 3] in [-1, 1].
    """

    condition, latents = split_batch((condition, latents))

    def apply_unet(noisy: jax.Array, timesteps: jax.Array, embeds: jax.Array, labels: jax.Array | None) -> jax.Array:
        return generator.unet.apply({"params": params["unet"]}, noisy, timesteps, embeds, labels)

    denoise = guided(
        apply_unet,
        condition.prompt_embeds,
        condition.negative_prompt_embeds,
        condition.class_labels,
        guidance_scale,
    )
    return decode_latents(generator, params, ddim_sample(denoise, generator.schedule, latents, num_steps))
