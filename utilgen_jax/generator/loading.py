"""Opens a Stable Diffusion folder: its modules, its weights and its schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.diffusion.schedules import NoiseSchedule, load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.clip_text import CLIPTextModel
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import Lora
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

    @functools.cached_property
    def _program(self) -> tuple[Any, ...]:
        """All that a compiled function depends on; the tokenizer is never inside one."""
        schedules = [
            schedule and (schedule.prediction_type, schedule.settings, np.asarray(schedule.alphas_cumprod).tobytes())
            for schedule in (self.schedule, self.image_noising_schedule)
        ]
        modules = self.unet, self.vae, self.text_encoder, self.image_encoder
        return (*modules, *schedules, self.image_mean, self.image_std)

    # By content: a checkpoint that is loaded again, or whose learnt words differ, meets the programs of the first.
    def __hash__(self) -> int:
        """Of the architecture."""
        return hash(self._program)

    def __eq__(self, other: object) -> bool:
        """Whether both are one architecture."""
        return isinstance(other, Generator) and self._program == other._program

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae.block_out_channels) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Raises InputError where images of this side are no whole number of latents."""
        if image_size % self.vae_scale_factor:
            raise InputError(
                f"config.generator.image_size={image_size}: this checkpoint makes multiples of {self.vae_scale_factor}"
            )


def load_generator(
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype | None = None,
    vae_dtype: jnp.dtype | None = None,
    sharding_for: ShardingFor | None = None,
    gradient_checkpointing: str = "none",
    components: Mapping[str, Path] | None = None,
    variant: str | None = None,
) -> tuple[Generator, Params]:
    """Loads a checkpoint folder in diffusers' format (`model_index.json` and a folder per component).

    Args:
        folder: the checkpoint's; `checkpoints.resolve_checkpoint` finds it by name.
        dtype: of activations; schedules, statistics and softmax stay float32.
        param_dtype: the weights are stored in it, and cast to `dtype` where they are used; None is `dtype`.
        vae_dtype: of the autoencoder's activations, float32 where float16 overflows in it; None is `dtype`.
        sharding_for: gives each tensor its place, see `checkpoints.load_component`.
        gradient_checkpointing: what the UNet's and the autoencoder's backward passes compute again, see
            `UNet2DConditionModel`.
        components: folders to take components from instead, e.g. {'vae': folder of a VAE published alone}.
        variant: weights to prefer, e.g. 'fp16'.

    Returns:
        The generator and its weights, `{component name: params}`.

    Raises:
        InputError: a component is missing, broken, of an unsupported kind, or its weights do not fit its config.
    """
    generator = read_architecture(folder, dtype, vae_dtype, gradient_checkpointing, components)
    folders = component_folders(folder, components)
    stored = param_dtype or dtype
    params = {
        name: load_params(folders[name], module, stored, sharding_for, variant)
        for name in _MODULE_KINDS
        if (module := getattr(generator, name)) is not None
    }
    if generator.image_encoder is not None:
        params["image_normalizer"] = load_image_normalizer(folder, generator)
    return generator, params


def read_architecture(
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
    vae_dtype: jnp.dtype | None = None,
    gradient_checkpointing: str = "none",
    components: Mapping[str, Path] | None = None,
) -> Generator:
    """Reads a checkpoint's configs, tokenizer and schedules, but no weights; arguments, errors as in `load_generator`.

    The last one read is kept while its files stay as they are: what was compiled for a generator then serves all runs
    of a process that use it.
    """
    folder = folder.resolve()
    folders = {name: path.resolve() for name, path in component_folders(folder, components).items()}
    files = {path for pattern in ("*/*.json", "*/*.txt") for path in folder.glob(pattern)}
    files |= {path / "config.json" for path in folders.values()}
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(files) if path.is_file())
    dtypes = {name: jnp.dtype(vae_dtype or dtype) if name == "vae" else jnp.dtype(dtype) for name in _MODULE_KINDS}
    modules = tuple((name, path, dtypes[name]) for name, path in folders.items())
    return _read_architecture(folder, modules, gradient_checkpointing, stamps)


def component_folders(folder: Path, components: Mapping[str, Path] | None) -> dict[str, Path]:
    """Where each module's folder is, or would be; arguments as of `load_generator`; InputError for an unknown name."""
    unknown = sorted(set(components or ()) - set(_MODULE_KINDS))
    if unknown:
        raise InputError(f"components: {', '.join(unknown)} cannot be replaced; {', '.join(_MODULE_KINDS)} can")
    return {name: folder / name for name in _MODULE_KINDS} | dict(components or {})


@functools.lru_cache(maxsize=1)
def _read_architecture(
    folder: Path,
    components: tuple[tuple[str, Path, jnp.dtype], ...],
    gradient_checkpointing: str,
    stamps: tuple[tuple[Path, int, int], ...],
) -> Generator:
    del stamps  # they are there to be compared by the cache
    present = {name for name in _REQUIRED_COMPONENTS if (folder / name).is_dir()}
    present |= {name for name, path, _ in components if path.is_dir()}
    absent = [name for name in _REQUIRED_COMPONENTS if name not in present]
    if absent:
        raise InputError(
            f"checkpoint {folder}: has no folder {', '.join(absent)}. A Stable Diffusion checkpoint in diffusers' "
            f"format holds {', '.join(_REQUIRED_COMPONENTS)}"
        )
    settings = dict.fromkeys(("unet", "vae"), {"gradient_checkpointing": gradient_checkpointing})
    modules = {
        name: _MODULE_KINDS[name].from_config(checkpoints.load_config(path), dtype=dtype, **settings.get(name, {}))
        for name, path, dtype in components
        if name in present
    }
    _check_fit(folder, modules)
    image_noising_schedule = None
    if "image_encoder" in modules:
        config = checkpoints.load_config(folder / "image_noising_scheduler", "scheduler_config.json")
        image_noising_schedule = load_schedule(config)
    preprocessor = folder / "feature_extractor" / "preprocessor_config.json"
    preprocessing = checkpoints.load_config(preprocessor.parent, preprocessor.name) if preprocessor.is_file() else {}
    return Generator(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules.get("image_encoder"),
        tokenizer=checkpoints.load_tokenizer(folder / "tokenizer", modules["text_encoder"].max_position_embeddings),
        schedule=load_schedule(checkpoints.load_config(folder / "scheduler", "scheduler_config.json")),
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
    module: Any,
    dtype: jnp.dtype | None = jnp.float32,
    sharding_for: ShardingFor | None = None,
    variant: str | None = None,
) -> Params:
    """Loads the weights of one component's folder, checked against its module name by name; see `load_generator`."""
    return checkpoints.load_component(folder, dtype, sharding_for, expected_params(module), variant)[1]


def load_image_normalizer(folder: Path, generator: Generator) -> Params:
    """Loads unCLIP's mean and deviation of image embeddings, float32 [1, E] each, from a checkpoint's folder."""
    statistic = jax.ShapeDtypeStruct((1, generator.image_encoder.projection_dim), jnp.float32)
    expected = {"mean": statistic, "std": statistic}
    return checkpoints.load_component(folder / "image_normalizer", jnp.float32, expected=expected)[1]


def component_variables(params: Params, loras: Mapping[str, Lora] | None, name: str) -> dict[str, Any]:
    """What `module.apply` takes for one component: its weights, and its low-rank terms where `loras` holds some."""
    variables = {"params": params[name]}
    return variables | loras[name].variables() if loras and name in loras else variables


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
    if isinstance(module, DifficultyEncoder):
        return jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    if isinstance(module, CLIPVisionModelWithProjection):
        return (jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32),)
    return (jax.ShapeDtypeStruct((1, module.max_position_embeddings), jnp.int32),)
