"""Operations and bytes of a traced program, counted from its jaxpr, so that loops count as often as they run.

XLA's own `cost_analysis()` counts a loop's body once and the inside of a kernel not at all.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(jaxpr: Jaxpr | ClosedJaxpr, platform: str | None = None, repeat_loops: bool = True) -> int:
    """Counts the operations of all matrix products and convolutions: two for each multiplication and addition.

    That is the definition of `torch.utils.flop_counter` and of published utilisation figures (PaLM, Chowdhery et al.
    2022, arXiv:2204.02311, appendix B). What a `scan` repeats is counted as often as it runs, and what gradient
    checkpointing computes again is counted again. Of branches the costliest counts: of attention, which has a branch
    for each kind of device, the plain one, as the inside of kernels is not seen. The body of a `while` loop counts
    once, since JAX does not say how often it runs.

    Args:
        jaxpr: `jax.jit(f).trace(...).jaxpr`; its shapes are those of the whole program, before it is split over
            devices.
        platform: 'cpu', 'cuda' or 'tpu': of branches for kinds of devices, this one's counts instead of the costliest.
        repeat_loops: False counts the body of each loop once, as XLA does.
    """
    products = {"dot_general": _of_dot, "conv_general_dilated": _of_convolution}
    return _count(jaxpr, products, platform, repeat_loops)


def count_bytes(jaxpr: Jaxpr | ClosedJaxpr, devices: int = 1) -> int:
    """Counts the bytes that all matrix products and convolutions read and write on each of so many devices.

    An estimate: what of a product is an example's is split over the devices, and what is a weight's is read whole by
    each. Elementwise operations count nothing, as XLA computes them with the products beside them; and a product's
    result counts though the next one may find it in the cache. Loops and branches count as in `count_flops`.

    Args:
        jaxpr: see `count_flops`.
        devices: over which examples are split.
    """
    of_product = partial(_bytes_of_product, devices)
    return _count(jaxpr, {"dot_general": of_product, "conv_general_dilated": of_product}, None, True)


_Products = Mapping[str, Callable[[JaxprEqn], int]]


def _count(jaxpr: Jaxpr | ClosedJaxpr, products: _Products, platform: str | None, repeat_loops: bool) -> int:
    equations = jaxpr.jaxpr.eqns if isinstance(jaxpr, ClosedJaxpr) else jaxpr.eqns
    return sum(_of_equation(equation, products, platform, repeat_loops) for equation in equations)


def _of_equation(equation: JaxprEqn, products: _Products, platform: str | None, repeat_loops: bool) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name in products:
        return products[name](equation)
    jaxprs = [jaxpr for value in parameters.values() for jaxpr in _jaxprs(value)]
    inner = [_count(jaxpr, products, platform, repeat_loops) for jaxpr in jaxprs]
    if name == "cond":
        return _of_branches(inner, parameters.get("branches_platforms"), platform)
    return sum(inner) * (parameters["length"] if name == "scan" and repeat_loops else 1)


def _of_branches(flops: list[int], platforms: tuple[tuple[str, ...] | None, ...] | None, platform: str | None) -> int:
    """The costliest branch, or the platform's; `platforms` is None of ordinary branches, its last of all other ones."""
    if platforms is None or platform is None:
        return max(flops)
    return next(count for count, own in zip(flops, platforms, strict=True) if own is None or platform in own)


def _of_dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: JaxprEqn) -> int:
    (inputs, kernel), result = map(_shape, equation.invars), _shape(equation.outvars[0])
    axes, dilations = equation.params["dimension_numbers"], equation.params["rhs_dilation"]
    operations = 2 * math.prod(result) * kernel[axes.rhs_spec[1]]
    # A strided convolution's gradient dilates its input: the zeros between its elements are not multiplied.
    operations //= math.prod(equation.params["lhs_dilation"])
    for input_axis, kernel_axis, dilation in zip(axes.lhs_spec[2:], axes.rhs_spec[2:], dilations, strict=True):
        # A gradient's gradient slides an image over a kernel: XLA exchanges the two, and no padding is multiplied.
        wider = kernel[kernel_axis] > inputs[input_axis]
        operations = operations * inputs[input_axis] // dilation if wider else operations * kernel[kernel_axis]
    return operations


def _bytes_of_product(devices: int, equation: JaxprEqn) -> int:
    variables: tuple[Any, ...] = (*equation.invars, equation.outvars[0])
    left, right, result = (math.prod(_shape(each)) * each.aval.dtype.itemsize for each in variables)
    # The right side of a convolution, or of a product without batch axes, is a weight.
    is_batched = equation.primitive.name == "dot_general" and bool(equation.params["dimension_numbers"][1][0])
    return (left + result + (right if is_batched else 0)) // devices + (0 if is_batched else right)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs(value: Any) -> Iterator[Jaxpr | ClosedJaxpr]:
    """All jaxprs in one of an equation's parameters."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
