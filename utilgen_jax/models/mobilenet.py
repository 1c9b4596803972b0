"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) with torchvision's names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.models.norms import NORMS
from utilgen_jax.models.resnet import convolution

# Table 2 of the paper: expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise 3×3 convolution, and linear 1×1 convolution to fewer channels.

    Attributes:
        features: channels of the result.
        expansion: ratio of middle to input channels; 1 omits the first convolution.
        stride: stride of the 3×3 convolution.
        norm: see `norms.NORMS`.
        dtype: dtype of activations.
    """

    features: int
    expansion: int
    stride: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        middle, hidden, first = self.expansion * inputs.shape[-1], inputs, 0
        if self.expansion > 1:
            hidden = _activated(hidden, middle, 1, 1, 1, self.norm, self.dtype, "conv.0")
            first = 1
        hidden = _activated(hidden, middle, 3, self.stride, middle, self.norm, self.dtype, f"conv.{first}")
        hidden = convolution(self.features, 1, 1, self.dtype, f"conv.{first + 1}")(hidden)
        hidden = NORMS[self.norm](self.dtype, f"conv.{first + 2}")(hidden)
        return inputs + hidden if self.stride == 1 and inputs.shape[-1] == self.features else hidden


def _activated(
    inputs: jax.Array, features: int, size: int, stride: int, groups: int, norm: str, dtype: Any, name: str
) -> jax.Array:
    """Convolution, norm and ReLU6, which torchvision numbers within `name`."""
    hidden = convolution(features, size, stride, dtype, f"{name}.0", groups)(inputs)
    return nn.relu6(NORMS[norm](dtype, f"{name}.1")(hidden))


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Attributes:
        num_classes: K.
        stages: (expansion, channels, blocks, stride) of each.
        stem: channels of the first convolution, of stride 2.
        last: channels of the last convolution.
        norm: "group" for training from scratch, or "batch" (with frozen statistics) for a trained network.
        dtype: dtype of activations; parameters, statistics and logits are float32.
    """

    num_classes: int
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    stem: int = 32
    last: int = 1280
    norm: str = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits float32 [B, K] of images float [B, H, W, C]."""
        hidden = _activated(images.astype(self.dtype), self.stem, 3, 2, 1, self.norm, self.dtype, "features.0")
        index = 1
        for expansion, features, depth, first_stride in self.stages:
            for block in range(depth):
                stride = first_stride if block == 0 else 1
                name = f"features.{index}"
                hidden = InvertedResidual(features, expansion, stride, self.norm, self.dtype, name=name)(hidden)
                index += 1
        hidden = _activated(hidden, self.last, 1, 1, 1, self.norm, self.dtype, f"features.{index}")
        pooled = hidden.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, name="classifier.1")(pooled)  # torchvision's classifier.0 is dropout
