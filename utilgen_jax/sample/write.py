"""The work of `python -m utilgen_jax.sample` once its arguments are read."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.config.lora_flags import lora_files
from utilgen_jax.config.schema import ConfigError
from utilgen_jax.data.images import to_float
from utilgen_jax.diffusion.samplers import make_sampler, sampler_name
from utilgen_jax.diffusion.schedules import with_spacing
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter_files import load_adapter_files
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion, read_architecture
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes
from utilgen_jax.generator.tokens import add_learned_embeds
from utilgen_jax.models.lora import Lora
from utilgen_jax.report.progress import Progress, format_duration
from utilgen_jax.sample.batches import ImageInputs, generate_images
from utilgen_jax.sample.inputs import Inputs, image_size, scale_image, scale_mask
from utilgen_jax.sample.output import ImageFolder

_DEFAULT_NUM = 4
_DEFAULT_STRENGTH = 0.8
_DEFAULT_SAMPLE_SIZE = 64  # latents a side where a checkpoint does not say, as in diffusers


def write_images(settings: dict[str, Any], inputs: Inputs) -> None:
    """Generates and writes the images, see `sample`.

    Args:
        settings: the value of each flag of `sample`; what the checkpoint decides is filled in.
        inputs: the files among them, read.

    Raises:
        InputError: the checkpoint or another file cannot be used, or the settings do not fit the checkpoint; nothing
            has been written. Or an image is not finite; those before it are written.
    """
    sd, loras, sampling, image_inputs = _open(settings, inputs)
    for prompt in dict.fromkeys([*settings["prompt"], settings["negative_prompt"]]):
        if settings["weighted_prompts"]:
            break  # of any length
        if rest := checkpoints.beyond_limit(sd.tokenizer, prompt):
            message = f"the prompt is too long for the text encoder, which does not see: {rest!r}"
            print(f"warning: {message}", file=sys.stderr)
    number, times = settings["num"], len(settings["prompt"])
    prompts = [prompt for prompt in settings["prompt"] for _ in range(number)]
    seeds = np.tile(np.uint64(settings["seed"]) + np.arange(number, dtype=np.uint64), times)
    if inputs.latents is not None:
        image_inputs = dataclasses.replace(image_inputs, latents=np.tile(inputs.latents, (times, 1, 1, 1)))
    folder = ImageFolder(settings["out"])
    print(
        f"{len(prompts)} images of {sampling.height}x{sampling.width}, {sampling.steps} steps of "
        f"{sampling.scheduler}, guidance {sampling.guidance_scale:g}; the first batch takes longer, it compiles",
        file=sys.stderr,
    )
    start = time.monotonic()
    with Progress("sampling", len(prompts), "image") as progress:
        for images in generate_images(sd, prompts, seeds, sampling, image_inputs, loras):
            folder.append(images)
            progress.update(len(folder))
    seconds = time.monotonic() - start
    records = [{"prompt": prompt, "seed": int(seed)} for prompt, seed in zip(prompts, seeds, strict=True)]
    folder.finish(number if times > 1 else math.ceil(math.sqrt(number)), settings, records)
    print(
        f"{len(folder)} images in {format_duration(seconds)} with compilation, "
        f"{len(folder) / seconds:.3g} images/s: {folder.folder / 'grid.png'}"
    )


def _open(
    settings: dict[str, Any], inputs: Inputs
) -> tuple[StableDiffusion, Mapping[str, Lora] | None, SamplingConfig, ImageInputs]:
    """Opens checkpoint, LoRA and learned token; checks everything that it can before the weights are loaded."""
    folder = checkpoints.resolve_checkpoint(settings["checkpoint"], settings["revision"], settings["variant"])
    components = {
        name: checkpoints.resolve_component(settings[name]) for name in ("unet", "vae") if settings[name] is not None
    }
    dtype, param_dtype = (jnp.dtype(settings[name] or settings["dtype"]) for name in ("dtype", "weights_dtype"))
    vae_dtype = jnp.dtype(settings["vae_dtype"]) if settings["vae_dtype"] else None
    architecture = read_architecture(folder, dtype, vae_dtype, components=components, may_inpaint=True)
    if settings["timestep_spacing"]:
        schedule = with_spacing(architecture.schedule, settings["timestep_spacing"])
        architecture = dataclasses.replace(architecture, schedule=schedule)
    sampling, image_inputs = plan(architecture, settings, inputs)
    adapters = load_adapter_files(lora_files(settings), architecture)
    sd = load_stable_diffusion(
        folder,
        param_dtype,
        components=components,
        variant=settings["variant"],
        architecture=architecture,
    )
    sd = sd.with_params(**{name: adapters.changed(name, sd.params[name]) for name in adapters.changes})
    for file in settings["embeds"] or ():
        sd = add_learned_embeds(sd, Path(file))
    return sd, adapters.loras or None, sampling, image_inputs


def plan(architecture: Architecture, settings: dict[str, Any], inputs: Inputs) -> tuple[SamplingConfig, ImageInputs]:
    """Checks the settings against the checkpoint, before its weights are loaded.

    Args:
        architecture: the checkpoint's.
        settings: each flag's value; what the checkpoint decides (num, height, width, scheduler) is filled in.
        inputs: from `read_inputs`.

    Returns:
        The sampling config, and the images to start from, scaled; without `inputs.latents`.

    Raises:
        ConfigError: lists everything that does not fit.
    """
    problems = []
    factor = architecture.vae_scale_factor
    size = architecture.unet.sample_size or _DEFAULT_SAMPLE_SIZE
    own_height, own_width = (factor * side for side in (size if isinstance(size, tuple) else (size, size)))
    height, width = settings["height"] or own_height, settings["width"] or own_width
    if inputs.init_image is not None:
        height, width = image_size(inputs.init_image, settings["height"], settings["width"], factor)
    for name, side in (("height", height), ("width", width)):
        if side % factor:
            near = max(round(side / factor), 1) * factor
            problems.append(f"--{name}={side}: this checkpoint makes multiples of {factor}; the nearest is {near}")
    number = settings["num"] or (_DEFAULT_NUM if inputs.latents is None else len(inputs.latents))
    settings |= {"num": number, "height": height, "width": width}
    shape = (number, *architecture.latent_shape((height, width)))
    if inputs.latents is not None and inputs.latents.shape != shape:
        problems.append(
            f"--latents: {settings['latents']} holds {list(inputs.latents.shape)}, but num, height and width make it "
            f"{list(shape)}"
        )
    if inputs.image_prompt is not None and architecture.image_encoder is None:
        problems.append(
            f"--image_prompt: {settings['checkpoint']} has no image_encoder; an unCLIP checkpoint has, others can "
            "start from an image with --init_image"
        )
    if architecture.is_inpainting and inputs.mask_image is None:
        problems.append(
            f"--mask_image: {settings['checkpoint']} is for inpainting; give --init_image, and --mask_image with white "
            "where it is to be generated anew"
        )
    if inputs.mask_image is not None and not architecture.is_inpainting:
        problems.append(f"--mask_image: {settings['checkpoint']} is not for inpainting; leave the mask out")
    noising = architecture.image_noising_schedule
    if noising is not None and settings["noise_level"] >= noising.num_train_timesteps:
        problems.append(f"--noise_level={settings['noise_level']}: must be below {noising.num_train_timesteps}")
    # XL never uses the last layer.
    is_xl = architecture.text_encoder_2 is not None
    layers = min(module.num_hidden_layers for module, _ in architecture.text_encoders.values()) - int(is_xl)
    if settings["clip_skip"] > layers:
        problems.append(f"--clip_skip={settings['clip_skip']}: the text encoder has {layers} layers")
    told = {name: settings[name] for name in ("original_size", "crop", "target_size")}
    if not is_xl:
        problems += [
            f"--{name}: {settings['checkpoint']} is told no sizes, Stable Diffusion XL is; leave it out"
            for name, pair in told.items()
            if pair is not None
        ]
    sizes = ImageSizes(
        told["original_size"] or (height, width), told["crop"] or (0, 0), told["target_size"] or (height, width)
    )
    if settings["strength"] is None:
        settings["strength"] = _DEFAULT_STRENGTH if inputs.init_image is not None and inputs.mask_image is None else 1.0
    noise_settings = {"strength": settings["strength"], "eta": settings["eta"]}
    try:
        if settings["scheduler"] == "checkpoint":
            settings["scheduler"] = sampler_name(architecture.schedule.settings)
        make_sampler(settings["scheduler"], architecture.schedule, settings["steps"], **noise_settings)
    except InputError as error:
        problems.append(f"--scheduler={settings['scheduler']}: {error}")
    if problems:
        raise ConfigError(problems)
    sampling = SamplingConfig(
        scheduler=settings["scheduler"],
        steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
        guidance_rescale=settings["guidance_rescale"],
        negative_prompt=settings["negative_prompt"],
        batch_size=settings["batch_size"],
        height=height,
        width=width,
        **noise_settings,
    )
    return sampling, ImageInputs(
        mask=None if inputs.mask_image is None else scale_mask(inputs.mask_image, height, width),
        init_image=None if inputs.init_image is None else scale_image(inputs.init_image, height, width),
        image_prompt=None if inputs.image_prompt is None else to_float(np.asarray(inputs.image_prompt)),
        noise_level=settings["noise_level"],
        weighted_prompts=settings["weighted_prompts"],
        clip_skip=settings["clip_skip"],
        sizes=sizes,
    )
