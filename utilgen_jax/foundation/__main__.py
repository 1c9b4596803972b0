"""Makes the embedded glyph world from nothing: `python -m utilgen_jax.foundation --out=FOLDER`.

It renders the corpus, trains a tiny CLIP, an autoencoder and a UNet, one after the other, and writes a Stable Diffusion
unCLIP checkpoint in diffusers' folder format. Everything follows from the seed. A run that was cut off continues:
finished components are read back from the folder, the one in training from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from utilgen_jax import weights
from utilgen_jax.cli import exit_status
from utilgen_jax.errors import InputError
from utilgen_jax.foundation import recipe
from utilgen_jax.foundation.autoencoder import encode_corpus, latent_scaling_factor, train_autoencoder
from utilgen_jax.foundation.clip import train_clip
from utilgen_jax.foundation.corpus import Corpus, make_corpus
from utilgen_jax.foundation.gallery import write_gallery
from utilgen_jax.foundation.tokenizer import write_tokenizer
from utilgen_jax.foundation.unet import train_unet
from utilgen_jax.generator.checkpoint import (
    Generator,
    Params,
    load_image_normalizer,
    load_params,
    read_architecture,
)
from utilgen_jax.generator.conditioning import encode_images
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.clip_text import CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.report.progress import format_duration

_OUT = flags.DEFINE_string("out", "runs/glyphs", "The checkpoint folder to write.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of corpus, initial weights and order.")
_SHRINK = flags.DEFINE_integer("shrink", 1, "Divide corpus and steps by this: to try the command, not for its result.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shrunk(training: recipe.Training) -> recipe.Training:
    steps = max(training.steps // _SHRINK.value, 1)
    return recipe.Training(steps, training.batch_size, training.learning_rate)


def _is_done(folder: Path) -> bool:
    """Whether a component's weights were written."""
    return any(folder.glob("*.safetensors"))


def write_clip(out: Path, corpus: Corpus, text_config: dict[str, Any], seed: int) -> None:
    """Trains both CLIP towers and writes `text_encoder`, `image_encoder` and `text_projection`."""
    text_encoder = CLIPTextModelWithProjection.from_config(text_config)
    image_encoder = CLIPVisionModelWithProjection.from_config(recipe.IMAGE_ENCODER_CONFIG)
    params = train_clip(corpus, text_encoder, image_encoder, seed, out / "training", _shrunk(recipe.CLIP_TRAINING))
    text = dict(params["text"])
    # Stable Diffusion's text encoder has no projection; utility terms that compare text with pictures read it here.
    projection = {"text_projection": text.pop("text_projection"), "logit_scale": params["logit_scale"]}
    weights.save_component(out / "text_projection", {"projection_dim": recipe.EMBEDDING_SIZE}, projection, jnp.float16)
    weights.save_component(out / "image_encoder", recipe.IMAGE_ENCODER_CONFIG, params["image"], jnp.float16)
    weights.save_component(out / "text_encoder", text_config, text, jnp.float16)


def write_vae(out: Path, corpus: Corpus, seed: int) -> None:
    """Trains the autoencoder and writes `vae`, with the scaling factor that its latents ask for."""
    vae = AutoencoderKL.from_config(recipe.AUTOENCODER_CONFIG)
    params = train_autoencoder(corpus, vae, seed, out / "training", _shrunk(recipe.AUTOENCODER_TRAINING))
    factor = latent_scaling_factor(encode_corpus(corpus, vae, params))
    config = recipe.AUTOENCODER_CONFIG | {"scaling_factor": round(factor, 5)}
    weights.save_component(out / "vae", config, params, jnp.float16)


def write_normalizer(out: Path, image_embeds: np.ndarray) -> None:
    """Writes `image_normalizer`: mean and deviation of the corpus's image embeddings."""
    statistics = {"mean": image_embeds.mean(0, keepdims=True), "std": image_embeds.std(0, keepdims=True)}
    config = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": recipe.EMBEDDING_SIZE}
    weights.save_component(out / "image_normalizer", config, statistics, jnp.float32)


def embed_corpus(corpus: Corpus, generator: Generator, params: Params, batch_size: int = 500) -> np.ndarray:
    """CLIP image embeddings of all pictures: float32 [N, E]."""
    number = len(corpus.images)
    parts = [
        np.asarray(encode_images(generator, params, corpus.pictures(np.arange(start, min(start + batch_size, number)))))
        for start in range(0, number, batch_size)
    ]
    return np.concatenate(parts)


def write_configs(out: Path, text_config: dict[str, Any]) -> None:
    """Writes all that is known before training: the components' configs, without weights."""
    configs = {
        "text_encoder": text_config,
        "image_encoder": recipe.IMAGE_ENCODER_CONFIG,
        "vae": recipe.AUTOENCODER_CONFIG,
        "unet": recipe.UNET_CONFIG,
    }
    for name, config in configs.items():
        if not _is_done(out / name):
            _write_json(out / name / "config.json", config)
    _write_json(out / "scheduler" / "scheduler_config.json", recipe.SCHEDULER_CONFIG)
    _write_json(out / "image_noising_scheduler" / "scheduler_config.json", recipe.IMAGE_NOISING_SCHEDULER_CONFIG)
    _write_json(out / "feature_extractor" / "preprocessor_config.json", recipe.IMAGE_PREPROCESSING)
    _write_json(out / "model_index.json", recipe.MODEL_INDEX)


def make_foundation(out: Path, seed: int) -> None:
    """Runs all stages; each leaves its component in `out` and is skipped where that is already there."""
    write_tokenizer(out / "tokenizer")
    tokenizer = weights.load_tokenizer(out / "tokenizer")
    text_config = recipe.text_encoder_config(len(tokenizer), tokenizer.model_max_length, tokenizer.eos_token_id)
    write_configs(out, text_config)
    corpus = make_corpus(max(recipe.CORPUS_SIZE // _SHRINK.value, 1000), seed, tokenizer)
    if not _is_done(out / "text_encoder"):
        write_clip(out, corpus, text_config, seed)
    if not _is_done(out / "vae"):
        write_vae(out, corpus, seed)

    # What follows sees the weights as they were written, in half precision, as a user will.
    generator = read_architecture(out)
    params = {
        name: load_params(out / name, getattr(generator, name)) for name in ("text_encoder", "image_encoder", "vae")
    }
    if not _is_done(out / "unet"):
        image_embeds = embed_corpus(corpus, generator, params)
        write_normalizer(out, image_embeds)
        params["image_normalizer"] = load_image_normalizer(out, generator)
        moments = encode_corpus(corpus, generator.vae, params["vae"])
        training = _shrunk(recipe.UNET_TRAINING)
        unet = train_unet(corpus, generator, params, moments, image_embeds, seed, out / "training", training)
        weights.save_component(out / "unet", recipe.UNET_CONFIG, unet, jnp.float16)
    write_gallery(out)
    shutil.rmtree(out / "training", ignore_errors=True)


def main(argv: list[str]) -> int:
    """Checks the arguments and makes the glyph world; returns the exit status."""

    def command() -> None:
        if len(argv) > 1 or _SHRINK.value < 1 or _SEED.value < 0:
            raise InputError("usage: python -m utilgen_jax.foundation [--out=FOLDER] [--seed=N>=0] [--shrink=N>=1]")
        start = time.monotonic()
        make_foundation(Path(_OUT.value), _SEED.value)
        print(f"The glyph world is in {_OUT.value} ({format_duration(time.monotonic() - start)}).")

    return exit_status(command)


if __name__ == "__main__":
    app.run(main)
