"""Trains the autoencoder between 32x32 images and 8x8 latents."""

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
from utilgen_jax.types import Params

KL_WEIGHT = 1e-3  # per pixel; keeps the latents close to a standard normal distribution without blurring the images


def train_autoencoder(
    corpus: Corpus,
    vae: Any,  # a linen module; apply() is untyped
    seed: int,
    folder: Path,
    training: Training = AUTOENCODER_TRAINING,
) -> Params:
    """Trains on squared and absolute error and a small KL term (Rombach et al. 2022, appendix G, no discriminator).

    Args:
        corpus: corpus of images.
        vae: an `AutoencoderKL`.
        seed: random seed of initial weights, posterior noise and batches.
        folder: folder for checkpoints.
        training: number of steps, batch size and learning rate.

    Returns:
        The trained parameters.
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

    return fit(folder / "autoencoder", loss_fn, params, get_batch, training, seed)


def encode_corpus(corpus: Corpus, vae: Any, params: Params, batch_size: int = 500) -> np.ndarray:
    """Returns the moments of the posteriors of all images: float32 [N, h, w, 2C]."""
    encode = jax.jit(lambda images: vae.apply({"params": params}, images, method="encode"))
    number = len(corpus.images)
    parts = [
        np.asarray(encode(corpus.float_images(np.arange(start, min(start + batch_size, number)))))
        for start in range(0, number, batch_size)
    ]
    return np.concatenate(parts)


def latent_scaling_factor(moments: np.ndarray) -> float:
    """Returns the factor that gives the latents unit variance, from the moments [N, h, w, 2C]."""
    return float(1.0 / np.std(np.asarray(mode(jnp.asarray(moments)))))
