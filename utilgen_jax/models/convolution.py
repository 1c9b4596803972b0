"""Convolution and pooling in the form in which XLA's CPU backend also computes their gradients fast."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, on CPUs otherwise where 3×3 kernels leave the size.

    Where pixels are fewer than channels, as `patches_convolution`: XLA's CPU backend reorders the kernel in every call,
    above all for the gradient to the input; with few pixels that takes longer than the products. One image in the
    deepest layers of Stable Diffusion 1.5, 1280 channels, on one core: at 8×8 patches take 29 ms for the result and 24
    ms for that gradient where `lax` takes 74 and 150, at 16×16 115 and 90 where it takes 156 and 252. At 32×32 and 640
    channels they are even, at 64×64 and 320 slower.

    Elsewhere with another gradient to the input, see `_with_copied_kernel`: no forward mode there (`jax.jvp`).

    Args:
        inputs: [B, H, W, C].
        kernel: [h, w, C, D].
        strides: as linen passes them, and so on; for `nn.Conv(conv_general_dilated=...)`.
        padding: of each side, or 'SAME'.
        **options: dilations and the like.

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
    """A size-preserving 3×3 convolution whose gradient to the input has its turned kernel in memory.

    That gradient is a convolution with the kernel turned by 180° and its channels exchanged. Left to itself XLA's CPU
    backend turns it as it goes, and inside a loop (`lax.scan`) then falls back to plain loops over all numbers: 100
    images of 32×32 and 32 channels take 1,339 ms there, 30 ms with the copy, 35 ms forwards (one core).
    """

    def forward(inputs: Any, kernel: Any) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        # What is kept for a gradient that nobody asks for would be computed, traced and counted for nothing.
        kept = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
        return convolve(inputs.value, kernel.value), kept

    def backward(
        kept: tuple[jax.Array | None, jax.Array | None], gradient: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        inputs, kernel = kept
        to_inputs = to_kernel = None
        if kernel is not None:
            turned = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
            to_inputs = convolve(gradient, turned)
        if inputs is not None:
            like = jax.ShapeDtypeStruct((3, 3, inputs.shape[-1], gradient.shape[-1]), inputs.dtype)
            (to_kernel,) = jax.linear_transpose(partial(convolve, inputs), like)(gradient)
        return to_inputs, to_kernel

    copied = jax.custom_vjp(convolve)
    copied.defvjp(forward, backward, symbolic_zeros=True)
    return copied


def patches_convolution(inputs: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """Same-size 3×3 convolution as one matrix product over patches; for `nn.Conv(conv_general_dilated=...)`.

    Inside a loop (`lax.scan`) XLA's CPU backend reaches a fraction of its speed in a convolution's weight gradient: a
    small network's step (16 channels, 8×8, batch 64) takes 87 ms there with `lax.conv` and `nn.max_pool`, 4.5 ms with
    patches and `max_pool_2x2`; outside loops they are even. Patches cost nine times the memory of the input, so this is
    for small images.

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
    """Maximum of each 2×2 block, [B, H, W, C] to [B, H/2, W/2, C]; one of several maxima of a block gets the gradient.

    By comparisons of two: the gradient of `jnp.max` divides by the number of elements that equal the maximum, and where
    XLA rounds an element otherwise when it computes it again for that, the number is 0 and the gradient NaN.
    """
    rows = _larger(inputs[:, ::2], inputs[:, 1::2])
    return _larger(rows[:, :, ::2], rows[:, :, 1::2])


def _larger(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.where(first >= second, first, second)
