"""Linear layers and convolutions that add a low-rank term where they are given one (LoRA, see `models.lora`)."""

from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from utilgen_jax.models.convolution import convolution

# The variable collections that hold the low-rank terms, at the scopes of the layers that have one.
FACTORS = "lora"
SCALES = "lora_scale"
# What `jax.checkpoint` knows the layers' results by, see `models.gradient_checkpointing`.
LINEAR_LAYER = "linear_layer"


class Dense(nn.Dense):
    """linen's Dense. With `lora` variables down [in, r] and up [r, out]: y = x W + b + scale (x down) up."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        return checkpoint_name(_add_low_rank(self, inputs, super().__call__(inputs)), LINEAR_LAYER)


class Conv(nn.Conv):
    """linen's Conv. With `lora` variables: plus scale times down [kh, kw, in, r], then up [1, 1, r, out], a 1×1 one."""

    conv_general_dilated: Any = convolution

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, h, w, in] to [B, h', w', features]."""
        return checkpoint_name(_add_low_rank(self, inputs, super().__call__(inputs)), LINEAR_LAYER)


def _add_low_rank(layer: Dense | Conv, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """Computed beside the layer, not in its kernel: a gradient to the factors then needs none to the kernel."""
    if not layer.has_variable(FACTORS, "down"):
        return outputs
    down: jax.Array = layer.get_variable(FACTORS, "down")
    up: jax.Array = layer.get_variable(FACTORS, "up")
    # `down` is a layer of the same kind, so that strides, padding and dtype need no second home.
    down_layer = layer.clone(features=down.shape[-1], use_bias=False, parent=None)
    reduced = down_layer.apply({"params": {"kernel": down}}, inputs)
    scaled_up = layer.get_variable(SCALES, "scale") * up.reshape(up.shape[-2:])
    return outputs + reduced @ scaled_up.astype(reduced.dtype)
