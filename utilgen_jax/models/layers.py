"""Linear layers and convolutions with an optional low-rank term (LoRA, see `models.lora`)."""

from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from utilgen_jax.models.convolution import convolution

# Variable collections of the low-rank terms, in the scopes of their layers.
FACTORS = "lora"
SCALES = "lora_scale"
# Name of the layers' results in checkpoint policies, see `models.gradient_checkpointing`.
LINEAR_LAYER = "linear_layer"


class Dense(nn.Dense):
    """linen's Dense. With `lora` variables down [in, r] and up [r, out]: y = x W + b + scale (x down) up."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        return checkpoint_name(_add_low_rank(self, inputs, super().__call__(inputs)), LINEAR_LAYER)


class Conv(nn.Conv):
    """linen's Conv. With `lora` variables: adds scale times convolutions down [kh, kw, in, r] and up [1, 1, r, out]."""

    conv_general_dilated: Any = convolution

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, h, w, in] to [B, h', w', features]."""
        return checkpoint_name(_add_low_rank(self, inputs, super().__call__(inputs)), LINEAR_LAYER)


def _add_low_rank(layer: Dense | Conv, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """Adds the low-rank term to a layer's outputs; gradients of the factors then need no gradient of the kernel."""
    if not layer.has_variable(FACTORS, "down"):
        return outputs
    down: jax.Array = layer.get_variable(FACTORS, "down")
    up: jax.Array = layer.get_variable(FACTORS, "up")
    # `down` is a clone of the layer, with its strides, padding and dtype.
    down_layer = layer.clone(features=down.shape[-1], use_bias=False, parent=None)
    reduced = down_layer.apply({"params": {"kernel": down}}, inputs)
    scaled_up = layer.get_variable(SCALES, "scale") * up.reshape(up.shape[-2:])
    return outputs + reduced @ scaled_up.astype(reduced.dtype)
