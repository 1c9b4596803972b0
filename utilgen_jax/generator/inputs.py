"""The arrays that a batch of images is generated from: arguments of one jitted function, whatever the images."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition, text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.sampling import initial_latents, step_keys
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes


@struct.dataclass
class SampleInputs:
    """What M images are generated from, without the adapter's part; every leaf is batch-first.

    Attributes:
        condition: the prompts' text states, and class labels for unCLIP.
        latents: standard normal, float32 [M, h, w, C].
        labels: the class of each image, int32 [M].
        rows: each image's row in the adapter's tables, int32 [M].
        keys: PRNG keys [M] of the noise that a stochastic sampler draws.
        clean_latents: of images to start from, float32 [M, h, w, C], see `sampling.encode_to_latents`; None to start
            from noise.
        clip_anchors: embeddings that the images should stay near in CLIP's space, [M, E], see `clip_similarity`; None
            if they are not compared.
    """

    condition: Condition
    latents: jax.Array
    labels: jax.Array
    rows: jax.Array
    keys: jax.Array
    clean_latents: jax.Array | None = None
    clip_anchors: jax.Array | None = None

    def anchors(self) -> jax.Array:
        """Returns `clip_anchors`; InputError if there are none."""
        if self.clip_anchors is None:
            raise InputError(
                "SampleInputs: clip_anchors are needed, the CLIP embeddings that the images should stay near"
            )
        return self.clip_anchors


def make_sample_inputs(
    sd: StableDiffusion,
    prompts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    seeds: Sequence[int] | np.ndarray,
    sampling: SamplingConfig,
    rows: Sequence[int] | np.ndarray | None = None,
) -> SampleInputs:
    """SampleInputs for M images of prompts.

    Args:
        sd: the checkpoint.
        prompts: M, one an image.
        labels: int [M], their classes.
        seeds: int [M], 0 .. 2**64 - 1; all that is random in an image follows from its own.
        sampling: gives size and negative prompt.
        rows: int [M], in the adapter's tables; None: the labels, for tables with a row a class.
    """
    return SampleInputs(
        condition=text_condition(sd, prompts, sampling.negative_prompt, sizes=ImageSizes.of(sampling.size)),
        latents=initial_latents(sd.architecture, np.asarray(seeds), sampling.size),
        labels=jnp.asarray(labels, jnp.int32),
        rows=jnp.asarray(labels if rows is None else rows, jnp.int32),
        keys=step_keys(np.asarray(seeds)),
    )
