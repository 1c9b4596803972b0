"""Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908): more of the useful images, less of the useless ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.losses import denoising_loss, diffusion_dpo_loss
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, apply_adapter
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params


def preference_pairs(
    utilities: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, fraction: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images of the same class, one of its most and one of its least useful ones. On the host.

    Args:
        utilities: float [M].
        labels: int [M].
        fraction: part of each class that wins, and that loses, in (0, 0.5]; at least one image of each.

    Returns:
        (winners, losers), int64 [P] each: the best against the worst, the second best against the second worst ...

    Raises:
        InputError: the fraction is out of range, or no class has two images.
    """
    if not 0.0 < fraction <= 0.5:
        raise InputError(f"preference_pairs: fraction={fraction} must be above 0 and at most 0.5")
    utilities, labels = np.asarray(utilities), np.asarray(labels)
    winners, losers = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        rising = members[np.argsort(utilities[members], kind="stable")]
        number = max(int(fraction * len(members)), 1)
        winners.append(rising[::-1][:number])
        losers.append(rising[:number])
    if not winners:
        raise InputError("preference_pairs: no class has two images to compare; generate more of each class")
    return np.concatenate(winners), np.concatenate(losers)


def dpo_losses(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    reference: Adapter,
    latents: jax.Array,
    sample_inputs: SampleInputs,
    winners: jax.Array | np.ndarray,
    losers: jax.Array | np.ndarray,
    key: jax.Array,
    beta: float = 2000.0,
) -> jax.Array:
    """The loss of each pair, at one random timestep and noise, the same for both of a pair.

    Args:
        generator: the checkpoint's architecture.
        params: its weights.
        adapter: what is differentiated: LoRA, prompts and difficulty; the starting noise has no part in it.
        reference: the adapter at the start of the round.
        latents: clean latents of the M images times the scaling factor, float32 [M, h, w, C], see
            `sampling.encode_to_latents`.
        sample inputs: what the M images were generated from.
        winners, losers: int [P], from `preference_pairs`.
        key: PRNG key of timesteps and noise.
        beta: how far the adapter may go from the reference: less the larger.

    Returns:
        Float32 [P]; below log 2 where the adapter prefers the winner more than the reference does.
    """

    # Both of a pair at once: of one key they get one noise, and the UNet stands in the program once.
    pairs = jnp.stack([jnp.asarray(winners), jnp.asarray(losers)])

    def errors(adapter: Adapter) -> jax.Array:
        def errors_of(chosen: jax.Array) -> jax.Array:
            condition, _ = apply_adapter(adapter, jax.tree.map(lambda leaf: leaf[chosen], sample_inputs))
            denoise = adapter_denoiser(generator, params, adapter, condition, guidance_scale=1.0)
            return denoising_loss(denoise, generator.schedule, latents[chosen], key)

        return jax.vmap(errors_of)(pairs)

    own, others = errors(adapter), errors(jax.lax.stop_gradient(reference))
    return diffusion_dpo_loss(own[0], own[1], others[0], others[1], beta)
