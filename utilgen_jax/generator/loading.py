"""Opens a Stable Diffusion folder: its modules, its weights and its schedules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax import checkpoints
from utilgen_jax.checkpoints.single_file import SingleFile
from utilgen_jax.diffusion.scheduler_fields import as_stable_diffusion
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.generator.model_index import ModelIndex, check_class, read_model_index
from utilgen_jax.generator.stable_diffusion import (
    MODULES,
    OTHER_MODULES,
    Architecture,
    StableDiffusion,
    expected_params,
)
from utilgen_jax.models.clip_vision import CLIP_MEAN, CLIP_STD, read_preprocessor
from utilgen_jax.models.json_fields import only, read_fields
from utilgen_jax.types import Params

ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]

_REQUIRED_COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


def load_stable_diffusion(
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
    *,
    sharding_for: ShardingFor | None = None,
    components: Mapping[str, Path] | None = None,
    variant: str | None = None,
    architecture: Architecture | None = None,
) -> StableDiffusion:
    """Loads a checkpoint folder in diffusers' format (`model_index.json` and a folder per component).

    Args:
        folder: the checkpoint's; `checkpoints.resolve_checkpoint` finds it by name.
        dtype: of weights and activations; schedules, statistics and softmax stay float32.
        sharding_for: gives each tensor its place, see `checkpoints.load_component`.
        components: folders to take components from instead, e.g. {'vae': folder of a VAE published alone}.
        variant: weights to prefer, e.g. 'fp16'.
        architecture: from `read_architecture` on the same folder and components, which is not read again then. Its
            modules keep their dtype of activations, and `dtype` is that of the stored weights alone.

    Raises:
        InputError: a component is missing, broken, of an unsupported kind, or its weights do not fit its config.
    """
    if architecture is None:
        architecture = read_architecture(folder, dtype, components=components)
    folders = component_folders(folder, components)
    params = {
        name: load_params(folders[name], module, dtype, sharding_for, variant)
        for name, module in architecture.modules.items()
    }
    if architecture.image_encoder is not None:
        params["image_normalizer"] = load_image_normalizer(folder, architecture)
    return StableDiffusion(architecture, params)


def read_architecture(
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
    vae_dtype: jnp.dtype | None = None,
    gradient_checkpointing: str = "none",
    components: Mapping[str, Path] | None = None,
    may_inpaint: bool = False,
) -> Architecture:
    """Reads a checkpoint's configs, tokenizer and schedules, but no weights.

    Args:
        folder: the checkpoint's.
        dtype: of activations.
        vae_dtype: of the autoencoder's activations; None is `dtype`, but as in torch float32 in place of float16 where
            XL's autoencoder says `force_upcast`.
        gradient_checkpointing: what the UNet's and the autoencoder's backward passes compute again, see
            `UNet2DConditionModel`.
        components: folders to take components from instead, see `load_stable_diffusion`.
        may_inpaint: whether the UNet may be one that sees a mask.

    Raises:
        InputError: a component is missing, broken, of an unsupported kind, or does not fit the others.
    """
    index = read_model_index(folder)
    folders = component_folders(folder, components)
    present = {name for name in (*_REQUIRED_COMPONENTS, "tokenizer_2") if (folder / name).is_dir()}
    present |= {name for name, path in folders.items() if path.is_dir() or name in (components or {})}
    required = (
        *_REQUIRED_COMPONENTS,
        *(("image_encoder",) if index.is_unclip else ()),
        *(("text_encoder_2", "tokenizer_2") if index.is_xl else ()),
    )
    absent = [name for name in required if name not in present]
    if absent:
        raise InputError(
            f"checkpoint {folder}: has no folder {', '.join(absent)}. A Stable Diffusion checkpoint in diffusers' "
            f"format holds {', '.join(required)}"
        )
    if not index.is_unclip:
        present.discard("image_encoder")  # an IP-Adapter's, which is no part of the checkpoint's own images
    if not index.is_xl:
        present.discard("text_encoder_2")
    modules = {}
    for name in MODULES:
        if name in present:
            own_dtype = jnp.dtype((vae_dtype if name == "vae" else None) or dtype)
            settings = {"gradient_checkpointing": gradient_checkpointing} if name in ("unet", "vae") else {}
            config = checkpoints.load_config(folders[name])
            class_name = str(config.get("_class_name") or index.classes.get(name, ""))
            check_class(folders[name] / "config.json", name, class_name)
            if name == "unet" and not index.is_unclip:
                config = _with_sample_size(config)
            module = OTHER_MODULES.get(class_name, MODULES[name])
            modules[name] = module.from_config(config, dtype=own_dtype, **settings)
    upcast = index.is_xl and getattr(modules["vae"], "force_upcast", False)
    if upcast and vae_dtype is None and jnp.dtype(dtype) == jnp.float16:
        modules["vae"] = modules["vae"].clone(dtype=jnp.dtype(jnp.float32))
    _check_fit(folder, modules, may_inpaint)
    image_noising_schedule = None
    if index.is_unclip:
        image_noising_schedule = load_schedule(_scheduler_config(folder, "image_noising_scheduler", index))
    scheduler_config = _scheduler_config(folder, "scheduler", index)
    corrected = scheduler_config if index.is_unclip or index.is_xl else as_stable_diffusion(scheduler_config)
    image_mean, image_std = CLIP_MEAN, CLIP_STD
    preprocessor = folder / "feature_extractor" / "preprocessor_config.json"
    if index.is_unclip and preprocessor.is_file():
        preprocessing = checkpoints.load_config(preprocessor.parent, preprocessor.name)
        image_mean, image_std = read_preprocessor(preprocessing, modules["image_encoder"].image_size)
    tokenizers = [
        checkpoints.load_tokenizer(
            folder / f"tokenizer{number}", modules[f"text_encoder{number}"].max_position_embeddings
        )
        for number in ("", "_2")
        if f"text_encoder{number}" in modules
    ]
    if len({tokenizer.model_max_length for tokenizer in tokenizers}) > 1:
        raise InputError(
            f"{folder}: tokenizer and tokenizer_2 differ in model_max_length; their states go side by side"
        )
    return Architecture(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules.get("image_encoder"),
        tokenizer=tokenizers[0],
        schedule=load_schedule(corrected),
        image_noising_schedule=image_noising_schedule,
        image_mean=image_mean,
        image_std=image_std,
        text_encoder_2=modules.get("text_encoder_2"),
        tokenizer_2=tokenizers[1] if index.is_xl else None,
        zeros_for_empty_prompt=index.zeros_for_empty_prompt,
    )


def _scheduler_config(folder: Path, name: str, index: ModelIndex) -> dict[str, Any]:
    """A scheduler's parsed file; its class is that of the index, as in torch."""
    config = checkpoints.load_config(folder / name, "scheduler_config.json")
    return config | ({"_class_name": index.classes[name]} if name in index.classes else {})


def _with_sample_size(config: dict[str, Any]) -> dict[str, Any]:
    """A UNet's parsed file as torch's pipelines correct it: diffusers before 0.9 wrote 32 into files of 512 pixels."""
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version")))
    size = config.get("sample_size")
    is_old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    return config | {"sample_size": 64} if is_old and isinstance(size, int) and size < 64 else config


def component_folders(folder: Path, components: Mapping[str, Path] | None) -> dict[str, Path]:
    """The folder of each module, whether it exists or not; InputError if `components` has an unknown name."""
    unknown = sorted(set(components or ()) - set(MODULES))
    if unknown:
        raise InputError(f"components: {', '.join(unknown)} cannot be replaced; {', '.join(MODULES)} can")
    return {name: folder / name for name in MODULES} | dict(components or {})


def _check_fit(folder: Path, modules: dict[str, Any], may_inpaint: bool) -> None:
    """Raises InputError if components do not fit each other, as in checkpoints for other tasks than generation."""
    unet, channels = modules["unet"], modules["vae"].latent_channels
    encoders = [modules[name] for name in ("text_encoder", "text_encoder_2") if name in modules]
    with_mask = 2 * channels + 1
    needs = {
        "in_channels": (with_mask if may_inpaint and unet.in_channels == with_mask else channels, "its vae's latents"),
        "out_channels": (channels, "its vae's latent_channels"),
        "cross_attention_dim": (
            sum(encoder.hidden_size for encoder in encoders),
            "its text_encoder's hidden_size" if len(encoders) == 1 else "the sum of its text encoders' hidden_size",
        ),
        "addition_embed_type": (None if len(encoders) == 1 else "text_time", f"with {len(encoders)} text encoders"),
    }
    if len(encoders) == 2 and unet.addition_embed_type == "text_time":
        needs["pooled_width"] = (encoders[1].projection_dim, "its text_encoder_2's projection_dim")
    if "image_encoder" in modules:
        width = 2 * modules["image_encoder"].projection_dim
        needs["projection_class_embeddings_input_dim"] = (width, "twice its image_encoder's projection_dim")
    for field, (needed, whose) in needs.items():
        if getattr(unet, field) != needed:
            raise InputError(
                f"{folder / 'unet' / 'config.json'}: {field}={getattr(unet, field)} should be {needed}, {whose}; "
                "checkpoints for depth or upscaling cannot be used, those that generate can, and those for inpainting "
                "in `sample` and `export`"
            )


def load_params(
    folder: Path,
    module: Any,
    dtype: jnp.dtype | None = jnp.float32,
    sharding_for: ShardingFor | None = None,
    variant: str | None = None,
    single_file: SingleFile | None = None,
) -> Params:
    """Loads one component's weights, checked by name against its module; see `load_stable_diffusion`.

    With a `single_file` the folder holds the config alone.
    """
    return checkpoints.load_component(folder, dtype, sharding_for, expected_params(module), variant, single_file)[1]


def load_image_normalizer(folder: Path, architecture: Architecture) -> Params:
    """Loads unCLIP's mean and deviation of image embeddings, float32 [1, E] each, from a checkpoint's folder."""
    statistic = jax.ShapeDtypeStruct((1, architecture.image_encoder.projection_dim), jnp.float32)
    expected = {"mean": statistic, "std": statistic}
    config, params = checkpoints.load_component(folder / "image_normalizer", jnp.float32, expected=expected)
    fields = {"embedding_dim": only(architecture.image_encoder.projection_dim)}
    read_fields(str(folder / "image_normalizer" / "config.json"), fields, config)
    return params
