"""What the text encoders make of prompts, and the sizes that Stable Diffusion XL is told beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import struct

from utilgen_jax.generator.stable_diffusion import Architecture


@struct.dataclass
class PooledStates:
    """Text states of a checkpoint with two text encoders (XL), and what it takes of a prompt as a whole.

    Attributes:
        states: float [B, T, D], those of both encoders side by side.
        pooled: the second encoder's projected state of the end of the text, float [B, P].
    """

    states: jax.Array
    pooled: jax.Array

    def __len__(self) -> int:
        """B."""
        return len(self.states)

    def __getitem__(self, rows: Any) -> PooledStates:
        """Those of some prompts."""
        return PooledStates(self.states[rows], self.pooled[rows])


# Of B prompts: float [B, T, D], and with pooled states where the checkpoint takes them.
TextStates = jax.Array | PooledStates


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """What XL is told of an image's sizes, its micro-conditioning (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    Attributes:
        original: height and width before it was scaled and cropped, in pixels.
        crop: top and left of what was cropped from it.
        target: height and width afterwards.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int]) -> ImageSizes:
        """Those of an image that was neither scaled nor cropped: diffusers' default, and ours in training."""
        return cls(size, (0, 0), size)

    @classmethod
    def of_latents(cls, architecture: Architecture, shape: Sequence[int]) -> ImageSizes:
        """The same, of latents of the shape [..., h, w, C]."""
        height, width = (side * architecture.vae_scale_factor for side in shape[-3:-1])
        return cls.of((height, width))

    def numbers(self) -> tuple[int, ...]:
        """The six numbers, in the order in which the UNet takes them."""
        return *self.original, *self.crop, *self.target
