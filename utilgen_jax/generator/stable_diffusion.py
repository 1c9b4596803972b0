"""A Stable Diffusion model as one pytree: a static architecture, and the weights as its leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import NoiseSchedule
from utilgen_jax.errors import InputError
from utilgen_jax.models.autoencoder import AutoencoderKL
from utilgen_jax.models.autoencoder_tiny import AutoencoderTiny
from utilgen_jax.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import Lora
from utilgen_jax.models.unet import UNet2DConditionModel
from utilgen_jax.types import Params

# Name of a component -> the class of its module.
MODULES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "image_encoder": CLIPVisionModelWithProjection,
}
# Class of diffusers -> that of its module, where it is another than the component's.
OTHER_MODULES: dict[str, Any] = {"AutoencoderTiny": AutoencoderTiny}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A checkpoint without its weights; hashable, so that compiled functions can depend on it.

    Two architectures are equal if they compute the same: a checkpoint that is loaded again, or one with other learned
    tokens of the same number, meets the programs that were compiled for the first. The tokenizer is never part of one.

    Attributes:
        unet, vae, text_encoder: linen modules.
        image_encoder: the CLIP vision tower of an unCLIP checkpoint, else None.
        tokenizer: transformers' CLIPTokenizer.
        schedule: the noise schedule of the latents.
        image_noising_schedule: that of the image embeddings (unCLIP), else None.
        image_mean, image_std: CLIP's image preprocessing, for pixels in [0, 1].
        text_encoder_2, tokenizer_2: those of Stable Diffusion XL beside the first, else None.
        zeros_for_empty_prompt: whether an empty negative prompt is no text at all, its states zero.
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
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    zeros_for_empty_prompt: bool = False

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        """All that a compiled function depends on."""
        schedules = [
            schedule and (schedule.prediction_type, schedule.settings, np.asarray(schedule.alphas_cumprod).tobytes())
            for schedule in (self.schedule, self.image_noising_schedule)
        ]
        modules = self.unet, self.vae, self.text_encoder, self.text_encoder_2, self.image_encoder
        return (*modules, *schedules, self.image_mean, self.image_std, self.zeros_for_empty_prompt)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._content)

    def __hash__(self) -> int:
        """Hashes the content."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compares the content."""
        return self is other or (isinstance(other, Architecture) and self._content == other._content)

    @property
    def modules(self) -> dict[str, Any]:
        """The linen modules by component."""
        return {name: module for name in MODULES if (module := getattr(self, name)) is not None}

    @property
    def text_encoders(self) -> dict[str, tuple[Any, Any]]:
        """The text encoders' modules with their tokenizers, by component."""
        encoders = {"text_encoder": (self.text_encoder, self.tokenizer)}
        if self.text_encoder_2 is not None:
            encoders["text_encoder_2"] = (self.text_encoder_2, self.tokenizer_2)
        return encoders

    @property
    def text_width(self) -> int:
        """Width of text states: those of all text encoders, side by side."""
        return sum(module.hidden_size for module, _ in self.text_encoders.values())

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae.block_out_channels) - 1)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """The shape (h, w, C) of the latents of an image of (height, width) pixels."""
        height, width = size
        return height // self.vae_scale_factor, width // self.vae_scale_factor, self.unet.out_channels

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet also sees a mask and the latents of the image around it, see `conditioning.mask_image`."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1

    def check_image_size(self, image_size: int) -> None:
        """Raises InputError if images of this side are not a whole number of latents."""
        if image_size % self.vae_scale_factor:
            raise InputError(
                f"config.generator.image_size={image_size}: this checkpoint makes multiples of {self.vae_scale_factor}"
            )


@struct.dataclass
class StableDiffusion:
    """A checkpoint: one pytree whose leaves are the weights.

    Attributes:
        architecture: static; `jax.jit` needs no `static_argnums` for it.
        params: weights by component; with an image encoder also 'image_normalizer', unCLIP's statistics.
    """

    architecture: Architecture = struct.field(pytree_node=False)
    params: dict[str, Any]

    @property
    def unet(self) -> Any:
        """The UNet's module."""
        return self.architecture.unet

    @property
    def vae(self) -> Any:
        """The autoencoder's module."""
        return self.architecture.vae

    @property
    def text_encoder(self) -> Any:
        """The text encoder's module."""
        return self.architecture.text_encoder

    @property
    def image_encoder(self) -> Any:
        """The image encoder's module, or None."""
        return self.architecture.image_encoder

    @property
    def tokenizer(self) -> Any:
        """Transformers' CLIPTokenizer."""
        return self.architecture.tokenizer

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the latents."""
        return self.architecture.schedule

    def variables(self, name: str, loras: Mapping[str, Lora] | None = None) -> dict[str, Any]:
        """What `module.apply` takes for one component: its weights and, if `loras` has some, its low-rank terms."""
        variables = {"params": self.params[name]}
        return variables | loras[name].variables() if loras and name in loras else variables

    def with_params(self, **components: Params) -> StableDiffusion:
        """The same checkpoint with the weights of some components replaced."""
        return StableDiffusion(self.architecture, self.params | components)


@functools.cache
def expected_params(module: Any) -> Params:
    """The shapes of a module's parameters, without making them: a pytree of `jax.ShapeDtypeStruct`, not to be changed.

    They are found once: a large module takes seconds.
    """
    arguments = example_arguments(module)
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def example_arguments(module: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest arguments that a component's module accepts, as shapes, for `eval_shape` and `init`."""
    if isinstance(module, UNet2DConditionModel):
        size = 2 ** (len(module.block_out_channels) - 1)
        shapes = [
            jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
            jax.ShapeDtypeStruct((1, 1, module.cross_attention_dim), jnp.float32),
        ]
        if module.label_width is not None:
            shapes.append(jax.ShapeDtypeStruct((1, module.label_width), jnp.float32))
        return tuple(shapes)
    if isinstance(module, AutoencoderKL | AutoencoderTiny):
        size = 2 ** (len(module.block_out_channels) - 1)
        return (jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32),)
    if isinstance(module, DifficultyEncoder):
        return jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    if isinstance(module, CLIPVisionModelWithProjection):
        return (jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32),)
    return (jax.ShapeDtypeStruct((1, module.max_position_embeddings), jnp.int32),)
