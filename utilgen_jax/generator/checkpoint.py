"""Opens a Stable Diffusion folder: its modules, its weights and its schedules."""

from __future__ import annotations

import dataclasses
import functools
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
_MODULE_KINDS: dict[str, Any] = {
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

    # linen modules; the static type of apply() says nothing
    unet: Any
    vae: Any
    text_encoder: Any
    image_encoder: Any
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

    def check_image_size(self, image_size: int) -> None:
        """Raises InputError where the autoencoder and the UNet cannot halve pictures of this side often enough."""
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.block_out_channels) - 1)
        if image_size % multiple:
            raise InputError(f"config.generator.image_size={image_size}: this checkpoint makes multiples of {multiple}")


def load_generator(
    folder: Path, dtype: jnp.dtype = jnp.float32, sharding_for: ShardingFor | None = None
) -> tuple[Generator, Params]:
    """Loads a checkpoint folder in diffusers' format (`model_index.json` and a folder per component).

    Args:
      folder: the checkpoint's; `weights.resolve_checkpoint` finds it by name.
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
        params["image_normalizer"] = load_image_normalizer(folder, generator)
    return generator, params


def read_architecture(folder: Path, dtype: jnp.dtype = jnp.float32) -> Generator:
    """Reads a checkpoint's configs, tokenizer and schedules, but no weights; arguments, errors as in `load_generator`.

    The last one read is kept while its files stay as they are: what was compiled for a generator then serves all runs
    of a process that use it.
    """
    folder = folder.resolve()
    files = sorted(path for pattern in ("*/*.json", "*/*.txt") for path in folder.glob(pattern))
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file())
    return _read_architecture(folder, jnp.dtype(dtype), stamps)


@functools.lru_cache(maxsize=1)
def _read_architecture(folder: Path, dtype: jnp.dtype, stamps: tuple[tuple[Path, int, int], ...]) -> Generator:
    del stamps  # they are there to be compared by the cache
    absent = [name for name in _REQUIRED_COMPONENTS if not (folder / name).is_dir()]
    if absent:
        raise InputError(
            f"checkpoint {folder}: has no folder {', '.join(absent)}. A Stable Diffusion checkpoint in diffusers' "
            f"format holds {', '.join(_REQUIRED_COMPONENTS)}"
        )
    modules = {
        name: kind.from_config(weights.load_config(folder / name), dtype=dtype)
        for name, kind in _MODULE_KINDS.items()
        if (folder / name).is_dir()
    }
    _check_fit(folder, modules)
    image_noising_schedule = None
    if "image_encoder" in modules:
        config = weights.load_config(folder / "image_noising_scheduler", "scheduler_config.json")
        image_noising_schedule = load_schedule(config, to_sample=False)
    preprocessor = folder / "feature_extractor" / "preprocessor_config.json"
    preprocessing = weights.load_config(preprocessor.parent, preprocessor.name) if preprocessor.is_file() else {}
    return Generator(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules.get("image_encoder"),
        tokenizer=weights.load_tokenizer(folder / "tokenizer"),
        schedule=load_schedule(weights.load_config(folder / "scheduler", "scheduler_config.json")),
        image_noising_schedule=image_noising_schedule,
        image_mean=tuple(preprocessing.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
        image_std=tuple(preprocessing.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
    )


def _check_fit(folder: Path, modules: dict[str, Any]) -> None:
    """Raises InputError where components do not fit each other, as in checkpoints for other tasks than generation."""
    unet, channels = modules["unet"], modules["vae"].latent_channels
    needs = {
        "in_channels": (channels, "its vae's latent_channels"),
        "out_channels": (channels, "its vae's latent_channels"),
        "cross_attention_dim": (modules["text_encoder"].hidden_size, "its text_encoder's hidden_size"),
    }
    if "image_encoder" in modules:
        width = 2 * modules["image_encoder"].projection_dim
        needs["projection_class_embeddings_input_dim"] = (width, "twice its image_encoder's projection_dim")
    for field, (needed, whose) in needs.items():
        if getattr(unet, field) != needed:
            raise InputError(
                f"{folder / 'unet' / 'config.json'}: {field}={getattr(unet, field)} should be {needed}, {whose}; "
                "checkpoints for inpainting, depth or upscaling cannot be used, those that generate can"
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


def load_image_normalizer(folder: Path, generator: Generator) -> Params:
    """Loads unCLIP's mean and deviation of image embeddings, float32 [1, E] each."""
    _, params = weights.load_component(folder / "image_normalizer", dtype=jnp.float32)
    statistic = jax.ShapeDtypeStruct((1, generator.image_encoder.projection_dim), jnp.float32)
    return weights.check_params(params, {"mean": statistic, "std": statistic}, folder / "image_normalizer")


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
