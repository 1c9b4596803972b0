"""CLIP's two towers, loaded by themselves: for checkpoints that cannot compare images with words.

Stable Diffusion 1.5 and 2.1 hold a text tower without its projection and no image tower; unCLIP holds an image tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.generator.loading import ShardingFor
from utilgen_jax.generator.stable_diffusion import StableDiffusion, expected_params
from utilgen_jax.generator.tokens import check_token_rows
from utilgen_jax.models.clip_text import CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIP_MEAN, CLIP_STD, CLIPVisionModelWithProjection, read_preprocessor
from utilgen_jax.types import Params


@struct.dataclass
class ImageTower:
    """CLIP's image encoder.

    Attributes:
        encoder: static.
        params: its parameters.
        mean: of the channels of images in [0, 1] that it was trained on; static.
        std: their standard deviation; static.
    """

    encoder: CLIPVisionModelWithProjection = struct.field(pytree_node=False)
    params: Params
    mean: tuple[float, ...] = struct.field(pytree_node=False, default=CLIP_MEAN)
    std: tuple[float, ...] = struct.field(pytree_node=False, default=CLIP_STD)

    def embed(self, images: jax.Array) -> jax.Array:
        """CLIP image embeddings of float [-1, 1] images [B, H, W, 3]: float [B, E]; differentiable.

        As transformers' CLIPImageProcessor does, the shorter side is scaled to the encoder's with Keys' cubic kernel,
        and the middle square is taken; where that rounds to whole grey levels, this does not.
        """
        batch, *lengths, channels = images.shape
        side = self.encoder.image_size
        scaled = [side * length // min(lengths) for length in lengths]
        pixels = images
        if scaled != lengths:
            pixels = jnp.clip(jax.image.resize(images, (batch, *scaled, channels), "cubic"), -1.0, 1.0)
        top, left = ((length - side) // 2 for length in scaled)
        pixels = pixels[:, top : top + side, left : left + side]
        pixels = ((pixels + 1.0) / 2.0 - jnp.array(self.mean)) / jnp.array(self.std)
        seen: Any = self.encoder.apply({"params": self.params}, pixels)
        return seen.image_embeds


@struct.dataclass
class ClipTowers:
    """Both towers of a CLIP.

    Attributes:
        image: the image encoder.
        text: the text encoder; static.
        text_params: its parameters.
        tokenizer: of its prompts; static.
    """

    image: ImageTower
    text: CLIPTextModelWithProjection = struct.field(pytree_node=False)
    text_params: Params
    tokenizer: Any = struct.field(pytree_node=False)

    def embed_prompts(self, prompts: Sequence[str]) -> jax.Array:
        """CLIP text embeddings, float32 [P, E], not normalised."""
        input_ids = checkpoints.tokenize(self.tokenizer, prompts)
        check_token_rows(self.tokenizer, input_ids, self.text.vocab_size)
        read: Any = self.text.apply({"params": self.text_params}, jnp.asarray(input_ids))
        return read.text_embeds.astype(jnp.float32)


def find_clip(name: str) -> Path:
    """The folder of a CLIP by its name in `per_image.clip`; it is downloaded if necessary.

    Raises:
        InputError: it cannot be had.
    """
    try:
        return checkpoints.resolve_component(name)
    except InputError as error:
        raise InputError(
            f"config.per_image.clip: {error}; or --config.per_image.clip_weight=0 to do without"
        ) from error


def image_tower_of(sd: StableDiffusion) -> ImageTower:
    """The image encoder of an unCLIP checkpoint; InputError if it has none."""
    if sd.image_encoder is None:
        raise InputError("this checkpoint has no image_encoder; images can condition an unCLIP checkpoint only")
    architecture = sd.architecture
    return ImageTower(sd.image_encoder, sd.params["image_encoder"], architecture.image_mean, architecture.image_std)


def load_clip_towers(
    folder: Path, dtype: jnp.dtype = jnp.float32, sharding_for: ShardingFor | None = None
) -> ClipTowers:
    """Loads a folder of transformers' `CLIPModel`, such as openai/clip-vit-large-patch14.

    Args:
        folder: with `config.json`, weights and tokenizer, see `checkpoints.resolve_component`.
        dtype: of weights and activations.
        sharding_for: gives each tensor its place, see `checkpoints.load_component`.

    Raises:
        InputError: it is no CLIP, or broken.
    """
    config = checkpoints.load_config(folder)
    if config.get("model_type") != "clip" or not {"vision_config", "text_config"} <= config.keys():
        raise InputError(f"{folder}: is no CLIP with both towers, whose config.json has model_type 'clip'")

    def own(tower: str) -> dict[str, Any]:
        sizes = {"projection_dim": config.get("projection_dim", 512), "model_type": f"clip_{tower}_model"}
        return {**config[f"{tower}_config"], **sizes}

    vision = CLIPVisionModelWithProjection.from_config(own("vision"), dtype=dtype)
    text = CLIPTextModelWithProjection.from_config(own("text"), dtype=dtype)
    expected = expected_params(vision) | expected_params(text)
    scale = {"logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    _, params = checkpoints.load_component(folder, dtype, sharding_for, expected=expected | scale)
    mean, std = CLIP_MEAN, CLIP_STD
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.is_file():
        mean, std = read_preprocessor(checkpoints.load_config(folder, preprocessor.name), vision.image_size)
    return ClipTowers(
        image=ImageTower(
            vision,
            {name: params[name] for name in ("vision_model", "visual_projection")},
            mean,
            std,
        ),
        text=text,
        text_params={name: params[name] for name in ("text_model", "text_projection")},
        tokenizer=checkpoints.load_tokenizer(folder, text.max_position_embeddings),
    )
