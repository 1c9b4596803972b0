"""Opens a Stable Diffusion folder: its modules, its weights and its schedules."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax import weights
from utilgen_jax.diffusion.schedules import NoiseSchedule, load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.clip_text import CLIPTextModel
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.models.unet import UNet2DConditionModel

Params = Any
ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]

_REQUIRED_COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
_MODULE_KINDS = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "image_encoder": CLIPVisionModelWithProjection,
}


@dataclasses.dataclass(frozen=True)
class Generator:
    """A checkpoint's architecture: everything but the weights, so that it can be a static argument of jit.

    Attributes:
      unet, vae, text_encoder: linen modules.
      image_encoder: the CLIP vision tower of an unCLIP checkpoint, else None.
      tokenizer: transformers' CLIPTokenizer.
      schedule: the noise schedule of the latents.
      image_noising_schedule: of the image embeddings (unCLIP), else None.
      image_mean, image_std: of the CLIP image preprocessing, for pixels in [0, 1].
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    image_encoder: CLIPVisionModelWithProjection | None
    tokenizer: Any
    schedule: NoiseSchedule
    image_noising_schedule: NoiseSchedule | None
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    # Schedules hold arrays, so hashing goes by identity: one generator object, one compilation.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae.block_out_channels) - 1)


def load_generator(
    folder: Path, dtype: jnp.dtype = jnp.float32, sharding_for: ShardingFor | None = None
) -> tuple[Generator, Params]:
    """Loads a checkpoint folder in diffusers' format (`model_index.json` and a folder per component).

    Args:
      folder: the checkpoint; see `weights.resolve_checkpoint` for names.
      dtype: of weights and activations; schedules stay float32.
      sharding_for: gives each tensor its place, see `weights.load_component`.

    Returns:
      The generator and its weights, `{component name: params}`.

    Raises:
      InputError: a component is missing, broken, of an unsupported kind, or its weights do not fit its config.
    """
    generator = read_architecture(folder, dtype)
    names = [name for name in _MODULE_KINDS if getattr(generator, name) is not None]
    params = {name: load_params(folder, generator, name, dtype, sharding_for) for name in names}
    if generator.image_encoder is not None:
        params["image_normalizer"] = load_image_normalizer(folder)
    return generator, params


def read_architecture(folder: Path, dtype: jnp.dtype = jnp.float32) -> Generator:
    """Reads a checkpoint's configs, tokenizer and schedules, but no weights; arguments and errors as in `load_generator`."""
    absent = [name for name in _REQUIRED_COMPONENTS if not (folder / name).is_dir()]
    if absent:
        raise InputError(
            f"checkpoint {folder}: no folder {', '.join(absent)} in it. A Stable Diffusion checkpoint in diffusers' format "
            f"holds {', '.join(_REQUIRED_COMPONENTS)}"
        )
    modules = {
        name: kind.from_config(read_json(folder / name / "config.json"), dtype=dtype)
        for name, kind in _MODULE_KINDS.items()
        if (folder / name).is_dir()
    }
    image_noising_schedule = None
    if "image_encoder" in modules:
        image_noising_schedule = load_schedule(read_json(folder / "image_noising_scheduler" / "scheduler_config.json"))
    preprocessing_file = folder / "feature_extractor" / "preprocessor_config.json"
    preprocessing = read_json(preprocessing_file) if preprocessing_file.is_file() else {}
    return Generator(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules.get("image_encoder"),
        tokenizer=weights.load_tokenizer(folder / "tokenizer"),
        schedule=load_schedule(read_json(folder / "scheduler" / "scheduler_config.json")),
        image_noising_schedule=image_noising_schedule,
        image_mean=tuple(preprocessing.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
        image_std=tuple(preprocessing.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
    )


def load_params(
    folder: Path,
    generator: Generator,
    name: str,
    dtype: jnp.dtype = jnp.float32,
    sharding_for: ShardingFor | None = None,
) -> Params:
    """Loads the weights of one component and checks them against its architecture, name by name."""
    _, params = weights.load_component(folder / name, dtype=dtype, sharding_for=sharding_for)
    return weights.check_params(params, expected_params(getattr(generator, name)), str(folder / name))


def load_image_normalizer(folder: Path) -> Params:
    """Loads unCLIP's mean and deviation of image embeddings, float32 [1, E] each."""
    _, params = weights.load_component(folder / "image_normalizer", dtype=jnp.float32)
    return params


def expected_params(module: Any) -> Params:
    """The shapes of a generator module's parameters, without making them: a pytree of `jax.ShapeDtypeStruct`."""
    arguments = example_arguments(module)
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def example_arguments(module: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest arguments that a generator module accepts, as shapes, for `eval_shape` and `init`."""
    if isinstance(module, UNet2DConditionModel):
        size = 2 ** (len(module.block_out_channels) - 1)
        shapes = [
            jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
            jax.ShapeDtypeStruct((1, 1, module.cross_attention_dim), jnp.float32),
        ]
        if module.class_embed_type is not None:
            width = module.projection_class_embeddings_input_dim
            shapes.append(jax.ShapeDtypeStruct((1, width), jnp.float32))
        return tuple(shapes)
    if isinstance(module, AutoencoderKL):
        size = 2 ** (len(module.block_out_channels) - 1)
        return (jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32),)
    if isinstance(module, CLIPVisionModelWithProjection):
        return (jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32),)
    return (jax.ShapeDtypeStruct((1, module.max_position_embeddings), jnp.int32),)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's JSON object; InputError names the file where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"checkpoint: cannot read {path}: {error}") from error
