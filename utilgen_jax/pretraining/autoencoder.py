"""Trains the glyph domain's autoencoder: 32x32 images to 8x8 latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.models.autoencoder import kl_divergence, mode, sample_posterior
from utilgen_jax.pretraining.corpus import Corpus
from utilgen_jax.pretraining.fit import fit
from utilgen_jax.pretraining.sizes import AUTOENCODER_TRAINING, Training

Params = Any

KL_WEIGHT = 1e-3  # per pixel; holds the latents near a unit Gaussian without blurring what they say


def train_autoencoder(
    corpus: Corpus,
    vae: Any,  # a linen module; the static type of apply() says nothing
    seed: int,
    folder: Path,
    training: Training = AUTOENCODER_TRAINING,
) -> Params:
    """Trains by squared and absolute error and a small KL term (Rombach et al. 2022, appendix G, no discriminator).

    Args:
        corpus: images.
        vae: an `AutoencoderKL`.
        seed: of initial weights, posterior noise and order.
        folder: for checkpoints.
        training: steps, batch size, learning rate.

    Returns:
        The trained params.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2)
    params = jax.jit(vae.init)(key, corpus.float_images(np.arange(1)))["params"]

    def loss_fn(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        moments = vae.apply({"params": params}, batch["images"], method="encode")
        images = vae.apply({"params": params}, sample_posterior(moments, key), method="decode")
        error = images - batch["images"]
        kl = kl_divergence(moments).mean() / error[0].size
        return jnp.square(error).mean() + 0.2 * jnp.abs(error).mean() + KL_WEIGHT * kl

    def get_batch(step: int) -> Any:
        return corpus.batch(seed + 2, step, training.batch_size)

    return fit("autoencoder", loss_fn, params, get_batch, training, seed, folder)


def encode_corpus(corpus: Corpus, vae: Any, params: Params, batch_size: int = 500) -> np.ndarray:
    """The posterior's moments of all images: float32 [N, h, w, 2C]."""
    encode = jax.jit(lambda images: vae.apply({"params": params}, images, method="encode"))
    number = len(corpus.images)
    parts = [
        np.asarray(encode(corpus.float_images(np.arange(start, min(start + batch_size, number)))))
        for start in range(0, number, batch_size)
    ]
    return np.concatenate(parts)


def latent_scaling_factor(moments: np.ndarray) -> float:
    """What gives the latents unit variance: 1 / their standard deviation, over all means [N, h, w, 2C]."""
    return float(1.0 / np.std(np.asarray(mode(jnp.asarray(moments)))))
