"""Trains the UNet on captions and unCLIP image embeddings, each dropped at random."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.conditioning import encode_tokens, noise_image_embeds
from utilgen_jax.generator.stable_diffusion import StableDiffusion, example_arguments
from utilgen_jax.models.autoencoder import sample_posterior
from utilgen_jax.pretraining.corpus import Corpus
from utilgen_jax.pretraining.fit import batch_indices, fit
from utilgen_jax.pretraining.sizes import (
    CAPTION_DROPOUT,
    IMAGE_DROPOUT,
    SNR_GAMMA,
    UNET_TRAINING,
    Training,
)
from utilgen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """The corpus's images as the UNet is trained on them.

    Attributes:
        moments: of the autoencoder's posterior, float32 [N, h, w, 2C].
        image_embeds: CLIP image embeddings, float32 [N, E].
    """

    moments: np.ndarray
    image_embeds: np.ndarray


def train_unet(
    corpus: Corpus,
    sd: StableDiffusion,
    images: EncodedImages,
    seed: int,
    folder: Path,
    training: Training = UNET_TRAINING,
) -> Params:
    """Trains on the denoising loss with min-SNR weighting; all other components are frozen.

    Args:
        corpus: images and captions.
        sd: with the weights of `text_encoder` and `image_normalizer`; those of the UNet are made here.
        images: those of the corpus, encoded.
        seed: of initial weights, noise and order.
        folder: for checkpoints.
        training: steps, batch size, learning rate.

    Returns:
        The moving average of the UNet's parameters.
    """
    key = jax.random.fold_in(jax.random.key(seed), 3)
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example_arguments(sd.unet))
    params = jax.jit(sd.unet.init)(key, *example)["params"]
    image_noising_schedule = sd.architecture.image_noising_schedule
    if image_noising_schedule is None:
        raise ValueError("the generator is not an unCLIP one: it has no image_noising_schedule")
    levels = image_noising_schedule.num_train_timesteps

    def loss_fn(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        number = len(batch["input_ids"])
        keys = [jax.random.fold_in(key, index) for index in range(6)]
        latents = sample_posterior(batch["moments"], keys[0]) * sd.vae.scaling_factor
        no_caption = jax.random.bernoulli(keys[1], CAPTION_DROPOUT, (number, 1))
        input_ids = jnp.where(no_caption, corpus.empty_ids, batch["input_ids"])
        noise_level = jax.random.randint(keys[2], (number,), 0, levels)
        embeds = batch["image_embeds"]
        noise = jax.random.normal(keys[3], embeds.shape)
        class_labels = noise_image_embeds(sd, embeds, noise_level, noise)
        no_image = jax.random.bernoulli(keys[4], IMAGE_DROPOUT, (number, 1))
        class_labels = jnp.where(no_image, 0.0, class_labels)
        prompt_embeds = encode_tokens(sd, input_ids)

        def denoise(noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
            return sd.unet.apply({"params": params}, noisy, timesteps, prompt_embeds, class_labels)

        return denoising_loss(denoise, sd.schedule, latents, keys[5], SNR_GAMMA).mean()

    def get_batch(step: int) -> Any:
        indices = batch_indices(seed + 3, step, len(images.moments), training.batch_size)
        return {
            "moments": images.moments[indices],
            "input_ids": corpus.input_ids[indices],
            "image_embeds": images.image_embeds[indices],
        }

    return fit(folder / "unet", loss_fn, params, get_batch, training, seed)
