"""Images from conditions: noise, sampler and autoencoder in one pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.samplers import (
    ApplyUNet,
    Denoiser,
    UNetInputs,
    guided,
    guided_beside,
    make_sampler,
    run_sampler,
    run_sampler_beside,
)
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.seeds import folded_keys, normal_of_keys, seed_keys
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion
from utilgen_jax.models.autoencoder import mode, sample_posterior
from utilgen_jax.models.embeddings import timestep_embedding
from utilgen_jax.models.lora import Lora
from utilgen_jax.runtime.sharding import split_batch


def initial_latents(architecture: Architecture, seeds: np.ndarray, size: tuple[int, int]) -> jax.Array:
    """Draws standard normal latents, each image's from its own seed, so that batching changes nothing.

    Args:
        architecture: gives the latents' channels and scale.
        seeds: int [B], 0 .. 2**64 - 1.
        size: height and width of the images in pixels.

    Returns:
        Float32 [B, h, w, C].
    """
    return normal_of_keys(seed_keys(seeds), architecture.latent_shape(size))


def step_keys(seeds: np.ndarray) -> jax.Array:
    """PRNG keys [B] for `sample`, each from its image's own seed, int [B]."""
    return folded_keys(seed_keys(seeds), 1)


def decode_latents(sd: StableDiffusion, latents: jax.Array) -> jax.Array:
    """Images of latents [B, h, w, C]: float32 [B, H, W, 3] in [-1, 1]."""
    scaled = latents / sd.vae.scaling_factor
    images = sd.vae.apply(sd.variables("vae"), scaled, method="decode")
    return jnp.clip(images.astype(jnp.promote_types(images.dtype, jnp.float32)), -1.0, 1.0)


@jax.jit
def encode_to_latents(sd: StableDiffusion, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Latents of images, as `sample` starts from: float32 [B, h, w, C].

    Args:
        sd: the checkpoint.
        images: float [B, H, W, 3] in [-1, 1].
        keys: PRNG keys [B] to draw from the autoencoder's posterior; None takes its mean.
    """
    moments = sd.vae.apply(sd.variables("vae"), images, method="encode").astype(jnp.float32)
    latents = mode(moments) if keys is None else jax.vmap(sample_posterior)(moments, keys)
    return latents * sd.vae.scaling_factor


@partial(jax.jit, static_argnames=("sampling", "num_differentiable_steps"))
def sample(
    sd: StableDiffusion,
    condition: Condition,
    latents: jax.Array,
    sampling: SamplingConfig,
    *,
    loras: Mapping[str, Lora] | None = None,
    keys: jax.Array | None = None,
    clean_latents: jax.Array | None = None,
    num_differentiable_steps: int | None = None,
) -> jax.Array:
    """Text (and images) to images: a sampler with classifier-free guidance, then the decoder.

    Args:
        sd: the checkpoint.
        condition: of B images.
        latents: standard normal, float32 [B, h, w, C], see `initial_latents`.
        sampling: scheduler, steps, guidance, strength and eta (static); a strength below 1 needs `clean_latents`. The
            sizes are those of the arrays, not the config's.
        loras: low-rank terms by component; that of 'unet' is used here.
        keys: PRNG keys [B] of the noise that a stochastic scheduler draws, see `step_keys`.
        clean_latents: of images to start from, float32 [B, h, w, C], see `encode_to_latents`; noised with `latents`.
        num_differentiable_steps: through how many of the last steps gradients flow, see `run_sampler`.

    Returns:
        Float32 [B, H, W, 3] in [-1, 1].

    Raises:
        InputError: scheduler, steps, strength and checkpoint do not suit each other, see `make_sampler`.
    """
    if clean_latents is None and sampling.strength != 1.0:
        raise InputError(f"strength={sampling.strength} needs clean_latents to start from")
    sampler = make_sampler(
        sampling.scheduler, sd.schedule, sampling.steps, strength=sampling.strength, eta=sampling.eta
    )
    feedback, condition = condition.feedback, dataclasses.replace(condition, feedback=None)
    condition, latents, clean_latents, keys = split_batch((condition, latents, clean_latents, keys))

    def make_denoise(condition: Condition, loras: Mapping[str, Lora] | None) -> Denoiser:
        denoise = guided(**_guidance(sd, condition, loras, sampling), guidance_rescale=sampling.guidance_rescale)
        return denoise if feedback is None else feedback.guide(sd, denoise)

    latents = run_sampler(
        make_denoise(condition, loras),
        sampler,
        latents,
        clean_latents=clean_latents,
        keys=keys,
        num_differentiable_steps=num_differentiable_steps,
        frozen=make_denoise(*jax.lax.stop_gradient((condition, loras))),
    )
    return decode_latents(sd, latents)


@partial(jax.jit, static_argnames=("sampling", "num_differentiable_steps"))
def sample_beside(
    sd: StableDiffusion,
    condition: Condition,
    latents: jax.Array,
    sampling: SamplingConfig,
    others: UNetInputs,
    *,
    loras: Mapping[str, Lora] | None = None,
    keys: jax.Array | None = None,
    num_differentiable_steps: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`sample`, whose last call of the UNet predicts for other noisy latents too.

    One batch in place of two is compiled once, and fills an accelerator better.

    Args:
        sd, condition, latents, sampling, loras, keys, num_differentiable_steps: see `sample`; nothing leads the
            sampler, and it starts from pure noise.
        others: N noisy latents.

    Returns:
        (images float32 [B, H, W, 3] in [-1, 1], predictions of the others without guidance, [N, h, w, C]).
    """
    sampler = make_sampler(sampling.scheduler, sd.schedule, sampling.steps, eta=sampling.eta)
    condition, latents, keys, others = split_batch((condition, latents, keys, others))
    guidance = _guidance(sd, condition, loras, sampling)
    latents, predictions = run_sampler_beside(
        guided(**guidance),
        guided_beside(**guidance, others=others),
        sampler,
        latents,
        keys=keys,
        num_differentiable_steps=num_differentiable_steps,
        frozen=guided(**_guidance(sd, *jax.lax.stop_gradient((condition, loras)), sampling)),
    )
    return decode_latents(sd, latents), predictions


def _guidance(
    sd: StableDiffusion, condition: Condition, loras: Mapping[str, Lora] | None, sampling: SamplingConfig
) -> dict[str, Any]:
    """The arguments of `guided`, without its rescaling."""
    apply_unet, guidance_scale = unet_with_guidance(sd, loras, sampling.guidance_scale)
    if condition.masked is not None:
        apply_unet = partial(_apply_with_mask, apply_unet, condition.masked)
    return {"apply_unet": apply_unet, "guidance_scale": guidance_scale, **condition.branches()}


def _apply_with_mask(apply_unet: ApplyUNet, masked: jax.Array, latents: jax.Array, *others: Any) -> jax.Array:
    """The UNet's output for latents [N B, h, w, C], whose N branches see the same masks [B, h, w, 1 + C]."""
    masked = jnp.tile(masked, (len(latents) // len(masked), 1, 1, 1)).astype(latents.dtype)
    return apply_unet(jnp.concatenate([latents, masked], axis=-1), *others)


def mask_image(sd: StableDiffusion, image: jax.Array, mask: jax.Array) -> jax.Array:
    """What a UNet for inpainting sees besides noisy latents, as in diffusers: `Condition.masked`.

    Args:
        sd: a checkpoint for inpainting.
        image: float [B, H, W, 3] in [-1, 1].
        mask: float [B, H, W, 1], 1 where the image is to be generated anew, 0 where it is to stay.

    Returns:
        The mask at the latents' size, and the latents of the image without what it covers: float [B, h, w, 1 + C].
    """
    factor = sd.architecture.vae_scale_factor
    latents = encode_to_latents(sd, image * (mask < 0.5))
    return jnp.concatenate([mask[:, ::factor, ::factor].astype(latents.dtype), latents], axis=-1)


def unet_with_guidance(
    sd: StableDiffusion, loras: Mapping[str, Lora] | None, guidance_scale: float
) -> tuple[ApplyUNet, float]:
    """The UNet with its weights, and the guidance that is left to do.

    A latent consistency model is told the scale by an embedding (Luo et al. 2023, arXiv:2310.04378), and left alone.
    """
    apply_unet = partial(sd.unet.apply, sd.variables("unet", loras))
    width = getattr(sd.unet, "time_cond_proj_dim", None)
    if width is None:
        return apply_unet, guidance_scale
    scale = jnp.full(1, 1000.0 * (guidance_scale - 1.0))
    embedding = timestep_embedding(scale, width, flip_sin_to_cos=False, freq_shift=1)
    return partial(apply_unet, timestep_cond=embedding), 1.0


def check_finite_images(
    images: np.ndarray,
    architecture: Architecture,
    first: int = 0,
    error: type[ValueError | ArithmeticError] = FloatingPointError,
) -> None:
    """Raises `error` if an image is not finite.

    Args:
        images: [B, H, W, C].
        architecture: tells whether they were computed in half precision, which the message then blames.
        first: number of the batch's first image.
        error: the exception.
    """
    broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if not broken.size:
        return
    in_full = all(getattr(module, "dtype", jnp.float32) == jnp.float32 for module in architecture.modules.values())
    advice = (
        "All was computed in float32: the weights, a LoRA, a learned token or the starting noise are too large"
        if in_full
        else "Half precision overflows in some checkpoints: compute in float32, first of all the autoencoder"
    )
    raise error(f"image {first + broken[0]} holds NaN or infinity. {advice}")
