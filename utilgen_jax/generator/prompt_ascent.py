"""Instance level, UtilGen's first half (arXiv:2510.24262): a prompt of its own for each image, by gradient ascent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from utilgen_jax.generator.adapter import Adapter, GenerateImages
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.utility import Utility


def prompt_ascent_loss(
    prompt_offsets: jax.Array,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    *,
    generate_images: GenerateImages,
    utility: Utility,
    similarity: Callable[[jax.Array, jax.Array], jax.Array],
    clip_weight: float = 0.5,
) -> jax.Array:
    """Less the sum over images of utility - λ (1 - cosine); a few steps of Adam on it move each prompt.

    The cosine holds the meaning: what is only useful, and no longer looks like its class, loses it. A sum, so that with
    a row of offsets an image each is a problem of its own.

    Args:
        prompt_offsets: what is differentiated, float32 [N, T, D], in place of the adapter's.
        adapter: the rest of it.
        sample inputs: M images, with `clip_anchors`.
        generate: `adapter.generate_images` with the rest of its arguments; UtilGen differentiates the last 1 to 5 steps
            [ours].
        utility: of images, differentiable; in UtilGen the weight network's verdict on their loss.
        similarity: (images, anchors) -> cosine [M], `clip_similarity` with the checkpoint given.
        clip_weight: λ.

    Returns:
        Scalar.

    Raises:
        InputError: the sample inputs have no anchors, or (from `similarity`) the checkpoint has no image encoder.
    """
    images = generate_images(dataclasses.replace(adapter, prompt_offsets=prompt_offsets), sample_inputs)
    distances = 1.0 - similarity(images, sample_inputs.anchors())
    return -jnp.sum(utility(images, sample_inputs.labels) - clip_weight * distances)
