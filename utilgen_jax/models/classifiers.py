"""Image classifiers. None updates batch statistics, which would leak between the passes of a bilevel step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from utilgen_jax.errors import InputError
from utilgen_jax.models.convolution import max_pool_2x2
from utilgen_jax.models.mobilenet import MobileNetV2
from utilgen_jax.models.resnet import RESNETS, build_resnet
from utilgen_jax.models.vit import build_vit_small


class SmallCNN(nn.Module):
    """Three convolutions, two poolings and a hidden dense layer, for images of 8 to 64 pixels per side.

    Attributes:
        num_classes: K.
        width: channels of the first convolution; the others have twice as many.
        dtype: dtype of activations; parameters and logits are float32.
    """

    num_classes: int
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits float32 [B, K] of images float32 [B, H, W, C] in [-1, 1]."""
        hidden = images
        for index, channels in enumerate((self.width, 2 * self.width, 2 * self.width)):
            hidden = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype, name=f"convolutions.{index}")(hidden)
            hidden = nn.GroupNorm(num_groups=None, group_size=8, dtype=self.dtype, name=f"norms.{index}")(hidden)
            hidden = nn.relu(hidden)
            if index > 0:
                hidden = max_pool_2x2(hidden)
        # Averages the feature map to 2 x 2, so that the size of the head does not depend on the image size.
        batch, height, width, channels = hidden.shape
        hidden = hidden.reshape(batch, 2, height // 2, 2, width // 2, channels).mean((2, 4)).reshape(batch, -1)
        hidden = nn.relu(nn.Dense(4 * self.width, dtype=self.dtype, name="hidden")(hidden))
        return nn.Dense(self.num_classes, name="head")(hidden.astype(jnp.float32))


class MLP(nn.Module):
    """A perceptron with two hidden layers, for tabular features and comparisons.

    Attributes:
        num_classes: K.
        width: units of each hidden layer.
        dtype: dtype of activations; parameters and logits are float32.
    """

    num_classes: int
    width: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns logits float32 [B, K] of inputs float32 [B, ...], images or tabular features."""
        hidden = inputs.reshape(len(inputs), -1)
        for index in range(2):
            hidden = nn.relu(nn.Dense(self.width, dtype=self.dtype, name=f"hidden.{index}")(hidden))
        return nn.Dense(self.num_classes, name="head")(hidden.astype(jnp.float32))


def head_inputs(module: nn.Module, variables: Mapping[str, Any], images: jax.Array, head: str) -> jax.Array:
    """A classifier's features: what its last layer is given, float32 [B, D].

    Args:
        module: a classifier.
        variables: its.
        images: its input.
        head: name of the last layer.
    """
    seen: list[jax.Array] = []

    def listen(layer: Callable[..., Any], arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.name == head and context.method_name == "__call__":
            seen.append(arguments[0])
        return layer(*arguments, **keywords)

    with nn.intercept_methods(listen):
        module.apply(variables, images)
    return seen[-1]


def _resnet(name: str) -> Callable[[int, int, str, Any], nn.Module]:
    return lambda num_classes, image_size, norm, dtype: build_resnet(name, num_classes, norm, dtype)


# Classifiers with a configurable width.
_SCALABLE: Mapping[str, Any] = {"small_cnn": SmallCNN, "mlp": MLP}
# (num_classes, image_size, norm, dtype) -> network
_PUBLISHED: Mapping[str, Callable[[int, int, str, Any], nn.Module]] = {
    **{name: _resnet(name) for name in RESNETS},
    "mobilenet_v2": lambda num_classes, image_size, norm, dtype: MobileNetV2(num_classes, norm=norm, dtype=dtype),
    "vit_s": lambda num_classes, image_size, norm, dtype: build_vit_small(num_classes, image_size, dtype),
}
CLASSIFIERS = (*_SCALABLE, *_PUBLISHED)


def build_classifier(
    name: str, num_classes: int, width: int, image_size: int, dtype: Any = jnp.float32, norm: str = "group"
) -> nn.Module:
    """Builds a classifier by name.

    Args:
        name: one of `CLASSIFIERS`.
        num_classes: K.
        width: width of small_cnn and mlp; ignored by the others.
        image_size: side of the images in pixels.
        dtype: dtype of activations.
        norm: norm of the published convolutional networks, a key of `norms.NORMS`.

    Raises:
        InputError: the name is unknown, or the network does not support the image size.
    """
    if name in _PUBLISHED:
        return _PUBLISHED[name](num_classes, image_size, norm, dtype)
    if name not in _SCALABLE:
        raise InputError(f"config.classifier.name={name!r} is not one of {', '.join(CLASSIFIERS)}")
    if image_size < 8 or image_size % 8:
        raise InputError(f"config.data.image_size={image_size}: {name} requires multiples of 8")
    if width % 8:
        raise InputError(f"config.classifier.width={width} must be a multiple of 8, the group size of its norms")
    return _SCALABLE[name](num_classes=num_classes, width=width, dtype=dtype)
