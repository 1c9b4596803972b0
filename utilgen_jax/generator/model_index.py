"""What `model_index.json` says of a checkpoint: the classes of its components, and which of them are supported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.errors import InputError
from utilgen_jax.models.json_fields import TRUTH, WITHOUT_EFFECT, Kind, only, read_fields

INDEX = "model_index.json"

# Component -> the supported classes; None: any, as it is not of use here or as its own file tells what it is.
_SUPPORTED: Mapping[str, tuple[str, ...] | None] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": None,
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "image_normalizer": ("StableUnCLIPImageNormalizer",),
    "image_noising_scheduler": None,
    "feature_extractor": None,
    "safety_checker": None,
}
# What else may stand there, see `json_fields`.
_SETTINGS: Mapping[str, Kind] = {"requires_safety_checker": WITHOUT_EFFECT}
_ZEROS = "force_zeros_for_empty_prompt"
# Of XL's pipelines; a refiner wants an aesthetics score.
_XL_SETTINGS: Mapping[str, Kind] = {
    _ZEROS: TRUTH,
    "requires_aesthetics_score": only(False),
    "add_watermarker": WITHOUT_EFFECT,
}
_UNCLIP = "image_normalizer"  # the component that only unCLIP has
_SECOND = "text_encoder_2"  # the one that only XL has


@dataclasses.dataclass(frozen=True)
class ModelIndex:
    """A checkpoint's index.

    Attributes:
        classes: the class of each component that it has.
        is_unclip: whether images condition it, as in Stable Diffusion 2.1-unCLIP.
        is_xl: whether it has two text encoders, as Stable Diffusion XL.
        zeros_for_empty_prompt: see `Architecture`.
    """

    classes: Mapping[str, str]
    is_unclip: bool
    is_xl: bool
    zeros_for_empty_prompt: bool


def check_class(path: Path, component: str, class_name: str) -> None:
    """Raises InputError if a component's class, as its own file or the index tells it, is known and not supported."""
    supported = _SUPPORTED[component]
    if class_name and supported is not None and class_name not in supported:
        raise InputError(f"{path}: {component} is a {class_name}, which is not supported; {' or '.join(supported)} is")


def read_model_index(folder: Path) -> ModelIndex:
    """Reads a checkpoint's index; a folder that has none is what its components say.

    Raises:
        InputError: it names a component that is not supported, without which images would be others than torch's.
    """
    path = folder / INDEX
    index = read_json(path) if path.is_file() else {}
    classes = {
        name: str(entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }
    is_unclip, is_xl = (name in classes if classes else (folder / name).is_dir() for name in (_UNCLIP, _SECOND))
    settings = {name: value for name, value in index.items() if not isinstance(value, list)}
    settings = read_fields(str(path), {**_SETTINGS, **(_XL_SETTINGS if is_xl else {})}, settings)
    unknown = {name: kind for name, kind in classes.items() if name not in _SUPPORTED}
    if unknown:
        named = ", ".join(f"{name} ({kind})" for name, kind in unknown.items())
        raise InputError(
            f"{path}: {named}: not supported, and images would be made without it. To use the other components, open "
            "the folder in torch by StableDiffusionPipeline.from_pretrained and write it with save_pretrained"
        )
    for name, kind in classes.items():
        check_class(path, name, kind)
    # diffusers' default is that of its pipeline for two text encoders.
    return ModelIndex(classes, is_unclip, is_xl, is_xl and settings.get(_ZEROS, True))
