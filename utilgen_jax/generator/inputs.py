"""What images are asked of the generator, in arrays, so that one jitted function generates whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition, text_condition
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.generator.sampling import initial_latents, step_keys


@struct.dataclass
class SampleInputs:
    """M images to generate, but for what the adapter adds; every leaf is batch-first.

    Attributes:
        condition: prompts' text states and the rest of what the UNet is told.
        latents: standard normal, float32 [M, h, w, C].
        labels: the class that each image should show, int32 [M].
        rows: each image's row in the adapter's tables, int32 [M].
        keys: PRNG keys [M] of what a stochastic sampler draws.
        clean_latents: of images to start from, float32 [M, h, w, C], see `sampling.encode_to_latents`; None: of noise.
        clip_anchors: what each image should stay near in CLIP's space, [M, E], see `clip_similarity`; None where
            nobody looks.
    """

    condition: Condition
    latents: jax.Array
    labels: jax.Array
    rows: jax.Array
    keys: jax.Array
    clean_latents: jax.Array | None = None
    clip_anchors: jax.Array | None = None

    def anchors(self) -> jax.Array:
        """`clip_anchors`, for whoever cannot do without; InputError where there are none."""
        if self.clip_anchors is None:
            raise InputError("SampleInputs: clip_anchors are needed, what each image should stay near in CLIP's space")
        return self.clip_anchors


def make_sample_inputs(
    generator: Generator,
    params: Params,
    prompts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    seeds: Sequence[int] | np.ndarray,
    image_size: int,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    negative_prompt: str = "",
) -> SampleInputs:
    """SampleInputs for M images of prompts.

    Args:
        generator: the checkpoint.
        params: its weights.
        prompts: M, one an image.
        labels: int [M], their classes.
        seeds: int [M], 0 .. 2**31 - 1; all that is random in an image follows from its own.
        image_size: pixels a side.
        rows: int [M], in the adapter's tables; None: the labels, for tables with a row a class.
        negative_prompt: of the unconditional branch.
    """
    return SampleInputs(
        condition=text_condition(generator, params, prompts, negative_prompt),
        latents=initial_latents(generator, np.asarray(seeds), image_size),
        labels=jnp.asarray(labels, jnp.int32),
        rows=jnp.asarray(labels if rows is None else rows, jnp.int32),
        keys=step_keys(np.asarray(seeds)),
    )
