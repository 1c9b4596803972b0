"""Trains the parts of a small Stable Diffusion in turn, and writes a checkpoint in diffusers' format."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.generator.conditioning import encode_images
from utilgen_jax.generator.loading import load_image_normalizer, load_params, read_architecture
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.clip_text import CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.pretraining import sizes
from utilgen_jax.pretraining.autoencoder import encode_corpus, latent_scaling_factor, train_autoencoder
from utilgen_jax.pretraining.clip import train_clip
from utilgen_jax.pretraining.corpus import Corpus
from utilgen_jax.pretraining.domain import Domain
from utilgen_jax.pretraining.gallery import write_gallery
from utilgen_jax.pretraining.layout import TRAINING, TRAINING_IMAGES, is_done
from utilgen_jax.pretraining.tokenizer import write_tokenizer
from utilgen_jax.pretraining.unet import EncodedImages, train_unet
from utilgen_jax.runtime.atomic_write import write_text


def pretrain(out: Path, domain: Domain, seed: int, shrink: int, training_ids: Sequence[str] | None = None) -> None:
    """Trains the components that `out` lacks, and writes each of them.

    Args:
        out: checkpoint folder.
        domain: domain to train on.
        seed: random seed of initial weights and batches.
        shrink: divisor of the number of steps.
        training_ids: of the data set's images that the domain has, for `TRAINING_IMAGES`.
    """
    if training_ids is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / TRAINING_IMAGES, "".join(f"{each}\n" for each in training_ids))
    write_tokenizer(out / "tokenizer", domain.words)
    tokenizer = checkpoints.load_tokenizer(out / "tokenizer")
    text_config = sizes.text_encoder_config(len(tokenizer), tokenizer.model_max_length, tokenizer.eos_token_id)
    write_configs(out, text_config)
    corpus = domain.make_corpus(tokenizer)
    if not is_done(out / "text_encoder"):
        write_clip(out, corpus, text_config, seed, shrink)
    if not is_done(out / "vae"):
        write_vae(out, corpus, seed, shrink)

    # The UNet is trained on the weights as they were written, in half precision.
    if not is_done(out / "unet"):
        architecture = read_architecture(out)
        written = ("text_encoder", "image_encoder", "vae")
        sd = StableDiffusion(
            architecture, {name: load_params(out / name, architecture.modules[name]) for name in written}
        )
        image_embeds = embed_corpus(corpus, sd)
        write_normalizer(out, image_embeds)
        sd = sd.with_params(image_normalizer=load_image_normalizer(out, architecture))
        images = EncodedImages(encode_corpus(corpus, sd.vae, sd.params["vae"]), image_embeds)
        training = _shrunk(sizes.UNET_TRAINING, shrink)
        unet = train_unet(corpus, sd, images, seed, out / TRAINING, training)
        checkpoints.save_component(out / "unet", sizes.UNET_CONFIG, unet, jnp.float16)
    write_gallery(out, domain)
    shutil.rmtree(out / TRAINING, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def _shrunk(training: sizes.Training, shrink: int) -> sizes.Training:
    return dataclasses.replace(training, steps=max(training.steps // shrink, 1))


def write_clip(out: Path, corpus: Corpus, text_config: dict[str, Any], seed: int, shrink: int) -> None:
    """Trains both CLIP towers and writes `text_encoder`, `image_encoder` and `text_projection`."""
    text_encoder = CLIPTextModelWithProjection.from_config(text_config)
    image_encoder = CLIPVisionModelWithProjection.from_config(sizes.IMAGE_ENCODER_CONFIG)
    training = _shrunk(sizes.CLIP_TRAINING, shrink)
    params = train_clip(corpus, text_encoder, image_encoder, seed, out / TRAINING, training)
    text = dict(params["text"])
    # Stable Diffusion's text encoder has no projection; it is stored apart, for comparing text with images.
    projection = {"text_projection": text.pop("text_projection"), "logit_scale": params["logit_scale"]}
    checkpoints.save_component(
        out / "text_projection", {"projection_dim": sizes.EMBEDDING_SIZE}, projection, jnp.float16
    )
    checkpoints.save_component(out / "image_encoder", sizes.IMAGE_ENCODER_CONFIG, params["image"], jnp.float16)
    checkpoints.save_component(out / "text_encoder", text_config, text, jnp.float16)


def write_vae(out: Path, corpus: Corpus, seed: int, shrink: int) -> None:
    """Trains the autoencoder and writes `vae`, with the scaling factor of its latents."""
    vae = AutoencoderKL.from_config(sizes.AUTOENCODER_CONFIG)
    training = _shrunk(sizes.AUTOENCODER_TRAINING, shrink)
    params = train_autoencoder(corpus, vae, seed, out / TRAINING, training)
    factor = latent_scaling_factor(encode_corpus(corpus, vae, params))
    config = sizes.AUTOENCODER_CONFIG | {"scaling_factor": round(factor, 5)}
    checkpoints.save_component(out / "vae", config, params, jnp.float16)


def write_normalizer(out: Path, image_embeds: np.ndarray) -> None:
    """Writes `image_normalizer`: mean and standard deviation of the corpus's image embeddings."""
    statistics = {"mean": image_embeds.mean(0, keepdims=True), "std": image_embeds.std(0, keepdims=True)}
    config = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": sizes.EMBEDDING_SIZE}
    checkpoints.save_component(out / "image_normalizer", config, statistics, jnp.float32)


def embed_corpus(corpus: Corpus, sd: StableDiffusion, batch_size: int = 500) -> np.ndarray:
    """CLIP image embeddings of all images: float32 [N, E]."""
    number = len(corpus.images)
    parts = [
        np.asarray(encode_images(sd, corpus.float_images(np.arange(number)[start : start + batch_size])))
        for start in range(0, number, batch_size)
    ]
    return np.concatenate(parts)


def write_configs(out: Path, text_config: dict[str, Any]) -> None:
    """Writes the configs of all components, without weights."""
    configs = {
        "text_encoder": text_config,
        "image_encoder": sizes.IMAGE_ENCODER_CONFIG,
        "vae": sizes.AUTOENCODER_CONFIG,
        "unet": sizes.UNET_CONFIG,
    }
    for name, config in configs.items():
        if not is_done(out / name):
            _write_json(out / name / "config.json", config)
    _write_json(out / "scheduler" / "scheduler_config.json", sizes.SCHEDULER_CONFIG)
    _write_json(out / "image_noising_scheduler" / "scheduler_config.json", sizes.IMAGE_NOISING_SCHEDULER_CONFIG)
    _write_json(out / "feature_extractor" / "preprocessor_config.json", sizes.IMAGE_PREPROCESSING)
    _write_json(out / "model_index.json", sizes.MODEL_INDEX)
