"""Trains a tiny CLIP, which embeds captions and images in one space (Radford et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.pretraining.corpus import Corpus
from utilgen_jax.pretraining.fit import fit
from utilgen_jax.pretraining.sizes import CLIP_TRAINING, Training
from utilgen_jax.types import Params

INITIAL_LOGIT_SCALE = np.log(1 / 0.07)
LARGEST_LOGIT_SCALE = np.log(100.0)


def contrastive_loss(
    image_embeds: jax.Array, text_embeds: jax.Array, input_ids: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Returns CLIP's symmetric cross-entropy with all images of equal captions as positives.

    The vocabulary is small, so that a batch has many equal captions, which CLIP's own loss would push apart.

    Args:
        image_embeds: float [B, P], unnormalised.
        text_embeds: float [B, P], unnormalised.
        input_ids: token ids, int [B, T], which identify equal captions.
        logit_scale: logarithm of the inverse temperature, scalar.

    Returns:
        Scalar loss, in nats.
    """
    image_embeds = image_embeds / jnp.linalg.norm(image_embeds, axis=-1, keepdims=True)
    text_embeds = text_embeds / jnp.linalg.norm(text_embeds, axis=-1, keepdims=True)
    logits = jnp.exp(jnp.minimum(logit_scale, LARGEST_LOGIT_SCALE)) * image_embeds @ text_embeds.T
    same = jnp.all(input_ids[:, None] == input_ids[None], axis=-1).astype(jnp.float32)
    target = same / same.sum(axis=-1, keepdims=True)
    towards_text = optax.softmax_cross_entropy(logits, target)
    towards_image = optax.softmax_cross_entropy(logits.T, target)
    return 0.5 * (towards_text.mean() + towards_image.mean())


def train_clip(
    corpus: Corpus,
    text_encoder: Any,  # linen modules; apply() is untyped
    image_encoder: Any,
    seed: int,
    folder: Path,
    training: Training = CLIP_TRAINING,
) -> Params:
    """Trains both towers.

    Args:
        corpus: images and captions.
        text_encoder: a `CLIPTextModelWithProjection`.
        image_encoder: a `CLIPVisionModelWithProjection`.
        seed: random seed of initial weights and batches.
        folder: folder for checkpoints.
        training: number of steps, batch size and learning rate.

    Returns:
        {"text": params, "image": params, "logit_scale": scalar}.
    """
    example = corpus.batch(seed, 0, 2)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    params = {
        "text": jax.jit(text_encoder.init)(jax.random.fold_in(key, 0), example["input_ids"])["params"],
        "image": jax.jit(image_encoder.init)(jax.random.fold_in(key, 1), example["images"])["params"],
        "logit_scale": jnp.float32(INITIAL_LOGIT_SCALE),
    }

    def loss_fn(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        del key
        text = text_encoder.apply({"params": params["text"]}, batch["input_ids"])
        image = image_encoder.apply({"params": params["image"]}, batch["images"])
        return contrastive_loss(image.image_embeds, text.text_embeds, batch["input_ids"], params["logit_scale"])

    def get_batch(step: int) -> Any:
        return corpus.batch(seed + 1, step, training.batch_size)

    return fit(folder / "clip", loss_fn, params, get_batch, training, seed)
