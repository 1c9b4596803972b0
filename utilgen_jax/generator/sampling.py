"""Images from conditions: noise, sampler and autoencoder in one pure function."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.samplers import guided, make_sampler, run_sampler
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.loading import Generator, Params, component_variables
from utilgen_jax.models.autoencoder import mode, sample_posterior
from utilgen_jax.models.lora import Lora
from utilgen_jax.runtime.sharding import split_batch


def initial_latents(generator: Generator, seeds: np.ndarray, image_size: int | tuple[int, int]) -> jax.Array:
    """Standard normal latents, each image's from its own seed, so that batching changes nothing.

    Args:
        generator: gives the latents' channels and scale.
        seeds: int [B], 0 .. 2**31 - 1.
        image_size: pixels a side, or (height, width).

    Returns:
        Float32 [B, h, w, C].
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    factor = generator.vae_scale_factor
    shape = (height // factor, width // factor, generator.unet.in_channels)
    return _normal(jnp.asarray(seeds, jnp.int32), shape)


@partial(jax.jit, static_argnames="shape")
def _normal(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


@jax.jit
def step_keys(seeds: np.ndarray) -> jax.Array:
    """PRNG keys [B] for `sample`, each from its image's own seed, int [B]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(seeds, jnp.int32))


def decode_latents(generator: Generator, params: Params, latents: jax.Array) -> jax.Array:
    """Images of latents [B, h, w, C]: float32 [B, H, W, 3] in [-1, 1]."""
    scaled = latents / generator.vae.scaling_factor
    images = generator.vae.apply({"params": params["vae"]}, scaled, method="decode")
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


@partial(jax.jit, static_argnums=0)
def encode_to_latents(
    generator: Generator, params: Params, images: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    """Latents of images, as `sample` starts from: float32 [B, h, w, C].

    Args:
        generator: the checkpoint's architecture.
        params: its weights.
        images: float [B, H, W, 3] in [-1, 1].
        keys: PRNG keys [B] to draw from the autoencoder's posterior; without them its mean is taken.
    """
    moments = generator.vae.apply({"params": params["vae"]}, images, method="encode").astype(jnp.float32)
    latents = mode(moments) if keys is None else jax.vmap(sample_posterior)(moments, keys)
    return latents * generator.vae.scaling_factor


@partial(
    jax.jit,
    static_argnames=(
        "generator",
        "num_steps",
        "guidance_scale",
        "scheduler",
        "strength",
        "eta",
        "num_differentiable_steps",
    ),
)
def sample(
    generator: Generator,
    params: Params,
    condition: Condition,
    latents: jax.Array,
    *,
    num_steps: int,
    guidance_scale: float,
    scheduler: str = "ddim",
    loras: Mapping[str, Lora] | None = None,
    keys: jax.Array | None = None,
    clean_latents: jax.Array | None = None,
    strength: float = 1.0,
    eta: float = 0.0,
    num_differentiable_steps: int | None = None,
) -> jax.Array:
    """Text (and images) to images: a sampler with classifier-free guidance, then the decoder.

    Args:
        generator: the checkpoint's architecture (static).
        params: its weights.
        condition: of B images.
        latents: standard normal, float32 [B, h, w, C], see `initial_latents`.
        num_steps: denoising steps of the whole way from noise.
        guidance_scale: 1 or less means none.
        scheduler: one of `SAMPLERS`, or 'checkpoint' for the one that its `scheduler_config.json` names.
        loras: low-rank terms by component; that of 'unet' is used here.
        keys: PRNG keys [B] of the noise that a stochastic scheduler draws, see `step_keys`.
        clean_latents: of images to start from, float32 [B, h, w, C], see `encode_to_latents`; noised with `latents`.
        strength: the part of the way that is walked, in (0, 1]; less than 1 needs `clean_latents`.
        eta: the noise of 'ddim' steps, see `make_sampler`.
        num_differentiable_steps: through how many of the last steps gradients flow, see `run_sampler`.

    Returns:
        Float32 [B, H, W, 3] in [-1, 1].

    Raises:
        InputError: scheduler, steps, strength and checkpoint do not suit each other, see `make_sampler`.
    """
    if clean_latents is None and strength != 1.0:
        raise InputError(f"strength={strength} needs clean_latents to start from")
    sampler = make_sampler(scheduler, generator.schedule, num_steps, strength=strength, eta=eta)
    condition, latents, clean_latents, keys = split_batch((condition, latents, clean_latents, keys))
    variables = component_variables(params, loras, "unet")
    denoise = guided(
        partial(generator.unet.apply, variables),
        condition.prompt_embeds,
        condition.negative_prompt_embeds,
        condition.class_labels,
        guidance_scale,
    )
    latents = run_sampler(
        denoise,
        sampler,
        latents,
        clean_latents=clean_latents,
        keys=keys,
        num_differentiable_steps=num_differentiable_steps,
    )
    return decode_latents(generator, params, latents)
