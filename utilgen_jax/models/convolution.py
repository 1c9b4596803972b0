"""Convolution and pooling whose gradients are also fast on XLA's CPU backend."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """Computes `lax.conv_general_dilated`, with a faster form of size-preserving 3×3 convolutions on CPUs.

    With at most as many pixels as channels, that form is `patches_convolution`, since XLA's CPU backend reorders the
    kernel in every call, which then takes longer than the products. Otherwise it is `_with_copied_kernel`, which has no
    forward mode (`jax.jvp`).

    Args:
        inputs: [B, H, W, C].
        kernel: [h, w, C, D].
        strides: strides, as passed by `nn.Conv(conv_general_dilated=...)`.
        padding: padding of each side, or 'SAME'.
        **options: further options of `lax.conv_general_dilated`.

    Returns:
        [B, H', W', D].
    """

    def general(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)

    def patches(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return patches_convolution(inputs, kernel, strides, "SAME")

    def cpu(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        few_pixels = math.prod(inputs.shape[:3]) <= inputs.shape[3]
        return patches(inputs, kernel) if few_pixels else _with_copied_kernel(general)(inputs, kernel)

    same = padding == "SAME" or tuple(map(tuple, padding)) == ((1, 1), (1, 1))
    dense = {options["feature_group_count"], *options["lhs_dilation"], *options["rhs_dilation"]} == {1}
    if same and dense and kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1):
        return jax.lax.platform_dependent(inputs, kernel, cpu=cpu, default=general)
    return general(inputs, kernel)


def _with_copied_kernel(convolve: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Makes a size-preserving 3×3 convolution that materialises the rotated kernel of its input gradient.

    The input gradient is a convolution with the kernel rotated by 180° and its channels exchanged. Without the copy,
    XLA's CPU backend falls back to a slow implementation inside loops (`lax.scan`).
    """

    def forward(inputs: Any, kernel: Any) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        # Residuals of gradients that are not requested are dropped.
        kept = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
        return convolve(inputs.value, kernel.value), kept

    def backward(
        kept: tuple[jax.Array | None, jax.Array | None], gradient: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        inputs, kernel = kept
        to_inputs = to_kernel = None
        if kernel is not None:
            rotated = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
            to_inputs = convolve(gradient, rotated)
        if inputs is not None:
            like = jax.ShapeDtypeStruct((3, 3, inputs.shape[-1], gradient.shape[-1]), inputs.dtype)
            (to_kernel,) = jax.linear_transpose(partial(convolve, inputs), like)(gradient)
        return to_inputs, to_kernel

    copied = jax.custom_vjp(convolve)
    copied.defvjp(forward, backward, symbolic_zeros=True)
    return copied


def patches_convolution(inputs: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """Computes a size-preserving 3×3 convolution as a matrix product over patches.

    A function for `nn.Conv(conv_general_dilated=...)`. XLA's CPU backend is slow at the weight gradient of convolutions
    inside loops (`lax.scan`), but not at matrix products. Patches take nine times the memory of the input, so this is
    for small images.

    Args:
        inputs: [B, H, W, C].
        kernel: [3, 3, C, D].
        *arguments: strides and padding; only stride 1 and "SAME" are supported.
        **options: ignored; must be linen's defaults.

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
    """Returns the maximum of each 2×2 block: [B, H, W, C] to [B, H/2, W/2, C].

    Uses pairwise comparisons, so that one maximum of a block gets the gradient. The gradient of `jnp.max` divides by
    the number of maxima; it is NaN if XLA recomputes an element with other rounding, so that none equals the maximum.
    """
    rows = _larger(inputs[:, ::2], inputs[:, 1::2])
    return _larger(rows[:, :, ::2], rows[:, :, 1::2])


def _larger(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.where(first >= second, first, second)
