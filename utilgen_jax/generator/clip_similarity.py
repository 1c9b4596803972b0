"""How near an image is to its words, in the space that CLIP's two towers share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.generator.clip_towers import ImageTower
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion
from utilgen_jax.generator.tokens import tokenize_prompts

# A folder beside a checkpoint's components; diffusers has none, as its pipelines never compare texts with images.
TEXT_PROJECTION = "text_projection"


def load_text_projection(folder: Path, architecture: Architecture) -> jax.Array:
    """Loads `folder/text_projection`, from the text encoder's pooled state to CLIP's space: float32 [D, E].

    Raises:
        InputError: it is missing, broken or of other sizes, or the checkpoint has no image encoder to compare with.
    """
    if architecture.image_encoder is None:
        raise InputError(f"checkpoint {folder}: has no image_encoder; without one images cannot be compared with words")
    if not (Path(folder) / TEXT_PROJECTION).is_dir():
        raise InputError(
            f"checkpoint {folder}: has no folder {TEXT_PROJECTION}, of CLIP's text tower; take embeddings of the first "
            "images for anchors instead (conditioning.encode_images)"
        )
    shape = (architecture.text_encoder.hidden_size, architecture.image_encoder.projection_dim)
    expected = {
        "text_projection": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)},
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }
    _, loaded = checkpoints.load_component(Path(folder) / TEXT_PROJECTION, jnp.float32, expected=expected)
    return loaded["text_projection"]["kernel"]


def embed_prompts(sd: StableDiffusion, projection: jax.Array, prompts: Sequence[str]) -> jax.Array:
    """CLIP text embeddings of prompts, float32 [P, E], not normalised; `projection` is `load_text_projection`'s."""
    input_ids = jnp.asarray(tokenize_prompts(sd, prompts))
    pooled = sd.text_encoder.apply(sd.variables("text_encoder"), input_ids).pooled
    return pooled.astype(jnp.float32) @ projection


def clip_similarity(tower: ImageTower, images: jax.Array, anchors: jax.Array) -> jax.Array:
    """The cosine between images and their anchors, float32 [M] in [-1, 1]; differentiable.

    Args:
        tower: the image encoder, of the checkpoint or of a CLIP.
        images: float32 [M, H, W, 3] in [-1, 1].
        anchors: [M, E] in the same CLIP's space, not zero: `embed_prompts` of the class prompts, or the tower's
            embeddings of images.
    """
    embeds = tower.embed(images).astype(jnp.float32)
    lengths = jnp.linalg.norm(embeds, axis=-1) * jnp.linalg.norm(anchors, axis=-1)
    return jnp.sum(embeds * anchors, axis=-1) / lengths
