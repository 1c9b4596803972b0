"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

# (latents [B, h, w, C], timestep: scalar, int32 or float32) -> the model's output [B, h, w, C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
# (latents [N, h, w, C], timesteps [N], encoder_hidden_states [N, T, D], class_labels [N, E] or None) -> [N, h, w, C]
ApplyUNet = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


@struct.dataclass
class UNetInputs:
    """What the UNet is given of N noisy latents.

    Attributes:
        latents: [N, h, w, C].
        timesteps: [N].
        prompt_embeds: float [N, T, D].
        class_labels: float [N, E], or None.
    """

    latents: jax.Array
    timesteps: jax.Array
    prompt_embeds: jax.Array
    class_labels: jax.Array | None

    def predict(self, apply_unet: ApplyUNet) -> jax.Array:
        """The model's output [N, h, w, C]."""
        return apply_unet(self.latents, self.timesteps, self.prompt_embeds, self.class_labels)


def guided(
    apply_unet: ApplyUNet,
    prompt_embeds: jax.Array,
    negative_prompt_embeds: jax.Array,
    class_labels: jax.Array | None,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    negative_class_labels: jax.Array | None = None,
) -> Denoiser:
    """Makes a denoiser with classifier-free guidance (Ho & Salimans 2022), with both branches in a batch of 2B.

    Args:
        apply_unet: the UNet with its weights.
        prompt_embeds: prompt embeddings of the conditional branch, float [B, T, D].
        negative_prompt_embeds: prompt embeddings of the unconditional branch, float [B, T, D].
        class_labels: float [B, E], unCLIP's image embeddings with noise levels, or XL's pooled text states with sizes;
            or None.
        guidance_scale: guidance scale; without guidance (1 or less) only the conditional branch is computed.
        guidance_rescale: how far the standard deviation of each output is brought back to that of the conditional
            branch, from 0 to 1 (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        negative_class_labels: those of the unconditional branch; None for zeros.

    Returns:
        A denoiser for `run_sampler`.
    """

    embeds, labels = (negative_prompt_embeds, prompt_embeds), (negative_class_labels, class_labels)

    def denoise(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        inputs = _branches(latents, timestep, embeds, labels, guidance_scale)
        return _guide(inputs.predict(apply_unet), guidance_scale, guidance_rescale)

    return denoise


def guided_beside(
    apply_unet: ApplyUNet,
    prompt_embeds: jax.Array,
    negative_prompt_embeds: jax.Array,
    class_labels: jax.Array | None,
    guidance_scale: float,
    others: UNetInputs,
    negative_class_labels: jax.Array | None = None,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Makes `guided`'s denoiser, which predicts for other latents in the same batch: one call of the UNet for both.

    Args:
        apply_unet, prompt_embeds, negative_prompt_embeds, class_labels, guidance_scale, negative_class_labels: see
            `guided`.
        others: M noisy latents, predicted without guidance.

    Returns:
        (latents, timestep) -> (what the denoiser says, the predictions [M, h, w, C]).
    """

    embeds, labels = (negative_prompt_embeds, prompt_embeds), (negative_class_labels, class_labels)

    def denoise(latents: jax.Array, timestep: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = _branches(latents, timestep, embeds, labels, guidance_scale)
        of_all = jax.tree.map(lambda *parts: jnp.concatenate(parts), inputs, others).predict(apply_unet)
        own, predictions = jnp.split(of_all, [len(inputs.latents)])
        return _guide(own, guidance_scale), predictions

    return denoise


def _branches(
    latents: jax.Array,
    timestep: jax.Array,
    embeds: tuple[jax.Array, jax.Array],
    labels: tuple[jax.Array | None, jax.Array | None],
    guidance_scale: float,
) -> UNetInputs:
    """The unconditional branch, where there is guidance, and after it the conditional one."""
    negative_labels, class_labels = labels
    if guidance_scale <= 1.0:
        return UNetInputs(latents, jnp.broadcast_to(timestep, latents.shape[:1]), embeds[1], class_labels)
    if class_labels is not None:
        negative_labels = jnp.zeros_like(class_labels) if negative_labels is None else negative_labels
        class_labels = jnp.concatenate([negative_labels, class_labels])
    return UNetInputs(
        jnp.concatenate([latents, latents]),
        jnp.broadcast_to(timestep, (2 * latents.shape[0],)),
        jnp.concatenate(embeds),
        class_labels,
    )


def _guide(outputs: jax.Array, guidance_scale: float, guidance_rescale: float = 0.0) -> jax.Array:
    if guidance_scale <= 1.0:
        return outputs
    unconditional, conditional = jnp.split(outputs, 2)
    output = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale == 0.0:
        return output
    before, after = (jnp.std(each, axis=(1, 2, 3), ddof=1, keepdims=True) for each in (conditional, output))
    return output * (guidance_rescale * before / after + 1 - guidance_rescale)
