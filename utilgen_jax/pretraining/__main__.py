"""Pretrains a small Stable Diffusion from scratch, on printed digits or on your own images.

  python -m utilgen_jax.pretraining --out=runs/glyphs
  python -m utilgen_jax.pretraining --config=configs/pneumoniamnist.py --config.data.path=FILE.npz --out=runs/lungs

It makes the corpus, trains a tiny CLIP, an autoencoder and a UNet in turn, and writes a Stable Diffusion unCLIP
checkpoint for 32x32 pixels in diffusers' folder format. The result is deterministic in the seed. The same command
resumes an interrupted run: finished components are read from the folder, the current one from its last checkpoint.

With --config the corpus is a share of the training images of the config's data set, captioned by class and tones. Their
ids are written to OUT/training_images.txt; pass this file to the experiment as --config.data.exclude, so that it does
not use them as few-shot images. Exit status: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from utilgen_jax import checkpoints
from utilgen_jax.config import command_line
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
from utilgen_jax.pretraining.domain import Domain, glyph_domain
from utilgen_jax.pretraining.gallery import write_gallery
from utilgen_jax.pretraining.images import image_domain
from utilgen_jax.pretraining.tokenizer import write_tokenizer
from utilgen_jax.pretraining.unet import EncodedImages, train_unet
from utilgen_jax.report.progress import format_duration

TRAINING_IMAGES = "training_images.txt"


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = command_line.common_flags(None)
    flags.DEFINE_string("out", "runs/glyphs", "checkpoint folder to write", flag_values=values)
    flags.DEFINE_float("share", 0.5, "fraction of --config's training images to use", 0.01, 0.99, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of corpus, initial weights and batches", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "shrink", 1, "divisor of corpus size and steps, for a trial", lower_bound=1, flag_values=values
    )
    return values


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shrunk(training: sizes.Training, shrink: int) -> sizes.Training:
    return dataclasses.replace(training, steps=max(training.steps // shrink, 1))


def _is_done(folder: Path) -> bool:
    """Returns whether a component has been written."""
    return any(folder.glob("*.safetensors"))


def write_clip(out: Path, corpus: Corpus, text_config: dict[str, Any], seed: int, shrink: int) -> None:
    """Trains both CLIP towers and writes `text_encoder`, `image_encoder` and `text_projection`."""
    text_encoder = CLIPTextModelWithProjection.from_config(text_config)
    image_encoder = CLIPVisionModelWithProjection.from_config(sizes.IMAGE_ENCODER_CONFIG)
    training = _shrunk(sizes.CLIP_TRAINING, shrink)
    params = train_clip(corpus, text_encoder, image_encoder, seed, out / "training", training)
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
    params = train_autoencoder(corpus, vae, seed, out / "training", training)
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
        if not _is_done(out / name):
            _write_json(out / name / "config.json", config)
    _write_json(out / "scheduler" / "scheduler_config.json", sizes.SCHEDULER_CONFIG)
    _write_json(out / "image_noising_scheduler" / "scheduler_config.json", sizes.IMAGE_NOISING_SCHEDULER_CONFIG)
    _write_json(out / "feature_extractor" / "preprocessor_config.json", sizes.IMAGE_PREPROCESSING)
    _write_json(out / "model_index.json", sizes.MODEL_INDEX)


def pretrain(out: Path, domain: Domain, seed: int, shrink: int) -> None:
    """Trains the components that `out` lacks, and writes each of them.

    Args:
        out: checkpoint folder.
        domain: domain to train on.
        seed: random seed of initial weights and batches.
        shrink: divisor of the number of steps.
    """
    write_tokenizer(out / "tokenizer", domain.words)
    tokenizer = checkpoints.load_tokenizer(out / "tokenizer")
    text_config = sizes.text_encoder_config(len(tokenizer), tokenizer.model_max_length, tokenizer.eos_token_id)
    write_configs(out, text_config)
    corpus = domain.make_corpus(tokenizer)
    if not _is_done(out / "text_encoder"):
        write_clip(out, corpus, text_config, seed, shrink)
    if not _is_done(out / "vae"):
        write_vae(out, corpus, seed, shrink)

    # The UNet is trained on the weights as they were written, in half precision.
    if not _is_done(out / "unet"):
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
        unet = train_unet(corpus, sd, images, seed, out / "training", training)
        checkpoints.save_component(out / "unet", sizes.UNET_CONFIG, unet, jnp.float16)
    write_gallery(out, domain)
    shutil.rmtree(out / "training", ignore_errors=True)


def run(argv: Sequence[str]) -> None:
    """Parses the command line and writes the checkpoint.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid; nothing has been written.
    """
    values = define_flags()
    overrides, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    settings = values.flag_values_dict()
    out, seed, shrink = Path(settings["out"]), settings["seed"], settings["shrink"]
    if not settings["config"]:
        if overrides:
            problems.append("--config: required with overrides of its fields")
        if problems:
            raise command_line.ConfigError(problems)
        domain, training_ids = glyph_domain(seed, shrink), None
    else:
        config = command_line.read_config(settings["config"], overrides, problems)
        domain, training_ids = image_domain(config, settings["share"], seed)
    start = time.monotonic()
    if training_ids is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / TRAINING_IMAGES).write_text("".join(f"{each}\n" for each in training_ids), encoding="utf-8")
    pretrain(out, domain, seed, shrink)
    print(f"written: {out} ({format_duration(time.monotonic() - start)}).")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
