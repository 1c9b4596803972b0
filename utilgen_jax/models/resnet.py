"""Residual networks (He et al. 2015, arXiv 1512.03385) and their variants, with torch's names.

The CIFAR networks have the names of github.com/akamaster/pytorch_resnet_cifar10, the ImageNet networks those of
torchvision; `checkpoints.torch_names` converts both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.norms import NORMS

_he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(features: int, size: int, stride: int, dtype: Any, name: str, groups: int = 1) -> nn.Conv:
    """Makes a convolution without bias, with torch's padding of (size - 1) / 2 on each side for any stride.

    Args:
        features: channels of the result.
        size: side of the kernel.
        stride: stride in both directions.
        dtype: dtype of the result.
        name: name of the layer.
        groups: number of groups of channels.
    """
    margin = ((size - 1) // 2,) * 2
    return nn.Conv(
        features,
        (size, size),
        stride,
        (margin, margin),
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=_he_init,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (He et al. 2015, figure 5, left).

    Attributes:
        width: channels of the result.
        stride: stride of the first convolution.
        projects: whether a shortcut of another shape is a 1×1 convolution (option B), or else is subsampled and padded
            with zero channels on both sides (option A).
        norm: key of `NORMS`.
        dtype: dtype of activations.
    """

    width: int
    stride: int
    projects: bool
    norm: str
    dtype: Any

    expansion = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, width]."""
        conv, norm = partial(convolution, dtype=self.dtype), partial(NORMS[self.norm], self.dtype)
        hidden = nn.relu(norm("bn1")(conv(self.width, 3, self.stride, name="conv1")(inputs)))
        hidden = norm("bn2")(conv(self.width, 3, 1, name="conv2")(hidden))
        return nn.relu(hidden + _shortcut(self, inputs))


class BottleneckBlock(nn.Module):
    """1×1, 3×3 and 1×1 convolutions (He et al. 2015, figure 5, right), the 3×3 one with the stride as in torchvision.

    The result has 4 · width channels, the 3×3 convolution width · groups · width_per_group / 64 (by default `width`).

    Attributes:
        width: see `BasicBlock`.
        stride: stride of the 3×3 convolution.
        projects: see `BasicBlock`.
        norm: key of `NORMS`.
        dtype: dtype of activations.
        groups: groups of the 3×3 convolution, ResNeXt's cardinality (Xie et al. 2016, arXiv 1611.05431).
        width_per_group: channels per group in a stage of width 64; 128 for Wide ResNet (Zagoruyko and Komodakis 2016,
            arXiv 1605.07146).
    """

    width: int
    stride: int
    projects: bool
    norm: str
    dtype: Any
    groups: int = 1
    width_per_group: int = 64

    expansion = 4

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 · width]."""
        conv, norm = partial(convolution, dtype=self.dtype), partial(NORMS[self.norm], self.dtype)
        middle = self.width * self.width_per_group // 64 * self.groups
        hidden = nn.relu(norm("bn1")(conv(middle, 1, 1, name="conv1")(inputs)))
        hidden = nn.relu(norm("bn2")(conv(middle, 3, self.stride, name="conv2", groups=self.groups)(hidden)))
        hidden = norm("bn3")(conv(4 * self.width, 1, 1, name="conv3")(hidden))
        return nn.relu(hidden + _shortcut(self, inputs))


def _shortcut(block: BasicBlock | BottleneckBlock, inputs: jax.Array) -> jax.Array:
    channels = block.expansion * block.width
    if block.stride == 1 and inputs.shape[-1] == channels:
        return inputs
    if block.projects:
        projected = convolution(channels, 1, block.stride, block.dtype, "downsample.0")(inputs)
        return NORMS[block.norm](block.dtype, "downsample.1")(projected)
    margin = (channels - inputs.shape[-1]) // 2
    return jnp.pad(inputs[:, :: block.stride, :: block.stride], ((0, 0), (0, 0), (0, 0), (margin, margin)))


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        num_classes: K.
        depths: blocks of each stage.
        width: channels of the first stage, before the block's expansion; each stage doubles them.
        block: `BasicBlock` or `BottleneckBlock`, or a partial of the latter.
        imagenet: whether it is an ImageNet network (stem of a 7×7 convolution of stride 2 and max pooling, projecting
            shortcuts, head `fc`) or a CIFAR network (3×3 stem, shortcuts without parameters, head `linear`).
        norm: "group" for training from scratch, or "batch" (with frozen statistics) for a trained network.
        dtype: dtype of activations; parameters, statistics and logits are float32.
    """

    num_classes: int
    depths: tuple[int, ...]
    width: int
    block: Callable[..., BasicBlock | BottleneckBlock] = BasicBlock
    imagenet: bool = False
    norm: str = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits float32 [B, K] of images float [B, H, W, C]."""
        hidden = images.astype(self.dtype)
        size, stride = (7, 2) if self.imagenet else (3, 1)
        hidden = convolution(self.width, size, stride, self.dtype, "conv1")(hidden)
        hidden = nn.relu(NORMS[self.norm](self.dtype, "bn1")(hidden))
        if self.imagenet:
            hidden = nn.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}.{index}"
                width = self.width * 2**stage
                hidden = self.block(width, stride, self.imagenet, self.norm, self.dtype, name=name)(hidden)
        # Mean and head are float32, for the losses.
        pooled = hidden.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc" if self.imagenet else "linear")(pooled)


_cifar = partial(ResNet, width=16)
_imagenet = partial(ResNet, width=64, imagenet=True)

# He et al. 2015, section 4.2 and table 1; torchvision's resnext50_32x4d and wide_resnet50_2.
RESNETS: Mapping[str, Callable[..., ResNet]] = {
    "resnet20": partial(_cifar, depths=(3, 3, 3)),
    "resnet32": partial(_cifar, depths=(5, 5, 5)),
    "resnet56": partial(_cifar, depths=(9, 9, 9)),
    "resnet18": partial(_imagenet, depths=(2, 2, 2, 2)),
    "resnet34": partial(_imagenet, depths=(3, 4, 6, 3)),
    "resnet50": partial(_imagenet, depths=(3, 4, 6, 3), block=BottleneckBlock),
    "resnet101": partial(_imagenet, depths=(3, 4, 23, 3), block=BottleneckBlock),
    "resnext50": partial(_imagenet, depths=(3, 4, 6, 3), block=partial(BottleneckBlock, groups=32, width_per_group=4)),
    "wide_resnet50": partial(_imagenet, depths=(3, 4, 6, 3), block=partial(BottleneckBlock, width_per_group=128)),
}


def build_resnet(name: str, num_classes: int, norm: str = "group", dtype: Any = jnp.float32) -> ResNet:
    """Builds a residual network by name.

    Args:
        name: a key of `RESNETS`.
        num_classes: K.
        norm: a key of `NORMS`.
        dtype: dtype of activations.

    Raises:
        InputError: the name or the norm is unknown.
    """
    for what, value, table in (("residual network", name, RESNETS), ("norm", norm, NORMS)):
        if value not in table:
            raise InputError(f"{value!r} is not a {what}; choose one of {', '.join(table)}")
    return RESNETS[name](num_classes=num_classes, norm=norm, dtype=dtype)
