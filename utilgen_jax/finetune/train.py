"""Trains what the command line asks for, and writes files that diffusers opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.checkpoints.learned_embeds import FILE_NAME, save_learned_embeds
from utilgen_jax.checkpoints.lora_files import LORA_FILE, save_lora
from utilgen_jax.data.fingerprint import Fingerprints, digest
from utilgen_jax.data.image_folder import load_for_training
from utilgen_jax.data.image_source import ImageSource, random_crops
from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.inputs import fingerprint_model, note_inputs
from utilgen_jax.experiment.workdir import versions
from utilgen_jax.finetune.fields import training_fields
from utilgen_jax.generator.adapter import adapter_loras
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet
from utilgen_jax.generator.finetune.lora import train_lora
from utilgen_jax.generator.finetune.textual_inversion import initial_embeds, train_textual_inversion
from utilgen_jax.generator.loading import load_stable_diffusion, read_architecture
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.tokens import tokenize_prompts
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.folder_lock import locked_folder
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.sharding import make_mesh, replicate, sharding_for, to_host
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import OnStep

SETTINGS = "finetune.json"
_ENCODED_AT_ONCE = 4
_LOG_EVERY_STEPS = 10


def train(settings: dict[str, Any]) -> Iterator[Path]:
    """Trains; what an earlier run of the same settings has finished is not trained again.

    Args:
        settings: values of the command's flags.

    Yields:
        The files, each once it is written.

    Raises:
        InputError: images or checkpoint cannot be read or do not suit, or --out is of other settings, images or
            another checkpoint.
    """
    out = Path(settings["out"])
    source = load_for_training(settings["images"], settings["image_size"], 3)
    prompts = _prompts(settings, source)
    folder = checkpoints.resolve_checkpoint(settings["checkpoint"], settings["revision"])
    dtype = jnp.dtype(settings["dtype"])
    architecture = read_architecture(folder, dtype)
    _check_size(settings["image_size"], architecture.vae_scale_factor)
    _claim(out, settings)
    config = LoraConfig(prior_fraction=0.0, **{field.path: settings[field.path] for field in training_fields()})
    mesh = make_mesh()
    with locked_folder(out), jax.set_mesh(mesh):
        note_inputs(out, _inputs(source, folder))
        sd = load_stable_diffusion(folder, dtype, architecture=architecture, sharding_for=sharding_for(mesh))
        if settings["per_class"]:
            for label, name in enumerate(source.class_names):
                rows = np.flatnonzero(source.labels == label)
                yield _train_lora(sd, config, (source, rows), prompts, out / name, settings["seed"])
            return
        rows = np.arange(len(source.labels))
        if settings["token"]:
            yield _learn_token(sd, config, (source, rows), prompts, out, settings)
        else:
            yield _train_lora(sd, config, (source, rows), prompts, out, settings["seed"])


def _prompts(settings: dict[str, Any], source: ImageSource) -> list[str]:
    """The prompt of each class."""
    prompt, number = settings["prompt"], len(source.class_names)
    if number > 1 and (settings["token"] or "{class}" not in prompt):
        what = "--token learns one subject" if settings["token"] else "--prompt must hold {class}"
        raise InputError(f"--images: {settings['images']} has {number} class folders; {what}")
    return [prompt.replace("{class}", name.replace("_", " ")) for name in source.class_names]


def _inputs(source: ImageSource, checkpoint: Path) -> Fingerprints:
    """Fingerprints of all that is read."""
    images = {
        f"--images: {id_}": digest([source.encoded(row), source.class_names[source.labels[row]].encode()])
        for row, id_ in enumerate(source.ids)
    }
    names = {"--images: the names of all": digest(id_.encode() for id_ in source.ids)}
    return {**names, **images, **fingerprint_model("--checkpoint", checkpoint)}


def _check_size(image_size: int, factor: int) -> None:
    if image_size % factor:
        raise InputError(f"--image_size={image_size}: this checkpoint takes multiples of {factor}")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Notes the settings in the folder; InputError if it is of others."""
    file, own = out / SETTINGS, {name: value for name, value in settings.items() if name != "out"}
    if file.is_file():
        before = checkpoints.load_config(out, SETTINGS)
        differing = [
            f"--{name}: {before.get(name)!r} before, {own[name]!r} now" for name in own if before.get(name) != own[name]
        ]
        if differing:
            lines = "\n  ".join(differing)
            raise InputError(f"--out: {out} is of another training; take another folder or remove it\n  {lines}")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} holds other files; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(own, indent=2) + "\n")


def _train_lora(
    sd: StableDiffusion,
    config: LoraConfig,
    images: tuple[ImageSource, np.ndarray],
    prompts: list[str],
    out: Path,
    seed: int,
) -> Path:
    """Trains a LoRA on some rows of a source and writes it."""
    if (out / LORA_FILE).is_file():
        return out / LORA_FILE
    config, examples, states = config.of_images(len(images[1])), _encode(sd, config, images, seed), _states(out)
    ids = jnp.asarray(tokenize_prompts(sd, prompts))
    embeds = ids if config.text_encoder_rank else encode_prompts(sd, prompts)
    key = jax.random.fold_in(jax.random.key(seed), images[0].labels[images[1][0]])
    with Progress(f"LoRA {out.name}", config.steps) as progress:
        loop = TrainingLoop(_told(progress, config.steps), SavedState(states))
        adapter = train_lora(sd, embeds, examples, None, config, key, loop)
    file = save_lora(out, adapter_loras(adapter))
    states.remove()
    return file


def _learn_token(
    sd: StableDiffusion,
    config: LoraConfig,
    images: tuple[ImageSource, np.ndarray],
    prompts: list[str],
    out: Path,
    settings: dict[str, Any],
) -> Path:
    """Learns a token from some rows of a source and writes it."""
    if (out / FILE_NAME).is_file():
        return out / FILE_NAME
    token, seed = settings["token"], settings["seed"]
    config, examples, states = config.of_images(len(images[1])), _encode(sd, config, images, seed), _states(out)
    # The library's tokens are named by their class.
    prompts = [prompt.replace(token, "<class-0>") for prompt in prompts]
    start, key = initial_embeds(sd, [settings["initial"]]), jax.random.key(seed)
    with Progress(f"token {token}", config.steps) as progress:
        loop = TrainingLoop(_told(progress, config.steps), SavedState(states))
        embeds = train_textual_inversion(sd, prompts, start, examples, None, config, key, loop)
    widths = [module.hidden_size for module, _ in sd.architecture.text_encoders.values()]
    file = save_learned_embeds(out, token, np.asarray(to_host(embeds)), widths)
    states.remove()
    return file


def _encode(sd: StableDiffusion, config: LoraConfig, images: tuple[ImageSource, np.ndarray], seed: int) -> DenoisingSet:
    """Latents of random crops, or of the middle squares."""
    source, rows = images
    pixels = random_crops(source, rows, config.crops, config.flip, np.random.default_rng([seed, *rows[:1].tolist()]))
    parts = []
    with Progress("encode", len(pixels), "image") as progress:
        for start in range(0, len(pixels), _ENCODED_AT_ONCE):
            batch = pixels[start : start + _ENCODED_AT_ONCE]
            filled = np.concatenate([batch, np.repeat(batch[-1:], _ENCODED_AT_ONCE - len(batch), axis=0)])
            parts.append(encode_to_latents(sd, jnp.asarray(to_float(filled)))[: len(batch)])
            progress.update(min(start + _ENCODED_AT_ONCE, len(pixels)))
    labels = np.tile(source.labels[rows], len(pixels) // len(rows))
    return replicate(DenoisingSet(jnp.concatenate(parts), jnp.asarray(labels)))


def _states(out: Path) -> StateFolder:
    return StateFolder(out / "training", Saving(identity=versions()))


def _told(progress: Progress, steps: int) -> OnStep:
    """Tells of every tenth step's loss; between them nothing is read from the device."""

    def on_step(step: int, loss: jax.Array) -> None:
        if step % _LOG_EVERY_STEPS == 0 or step == steps:
            progress.update(step, loss=float(loss))

    return on_step
