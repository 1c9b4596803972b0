"""Convolution and pooling in the form in which XLA's CPU backend also computes their gradients fast."""

from typing import Any

import jax
import jax.numpy as jnp


def patches_convolution(inputs: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """Same-size 3×3 convolution as one matrix product over patches; for `nn.Conv(conv_general_dilated=...)`.

    XLA's CPU backend reaches a fraction of its speed in a convolution's weight gradient. On a small network's step (16
    channels, 8×8, batch 64) patches and `max_pool_2x2` together take 12 ms where `lax.conv` and `nn.max_pool` take
    74 ms. Patches cost nine times the memory of the input, so this is for small pictures.

    Args:
      inputs: [B, H, W, C].
      kernel: [3, 3, C, D].
      *arguments: strides and padding as linen passes them; only stride 1 and "SAME" are computed.
      **options: dilations and the like; linen's defaults.

    Returns:
      [B, H, W, D].
    """
    del options
    strides, padding = arguments[:2]
    if tuple(strides) != (1, 1) or padding != "SAME" or kernel.shape[:2] != (3, 3):
        raise ValueError(f"only 3×3, stride 1, SAME; got {kernel.shape[:2]}, {strides}, {padding}")
    batch, height, width, channels = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)], axis=-1
    )
    flat = patches.reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, -1)
    return flat.reshape(batch, height, width, -1)


def max_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Maximum of each 2×2 block, [B, H, W, C] to [B, H/2, W/2, C]; several maxima of a block share its gradient."""
    batch, height, width, channels = inputs.shape
    return inputs.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
