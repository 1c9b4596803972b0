"""Operations of a traced program, counted from its jaxpr, so that loops count as often as they run.

XLA's own `cost_analysis()` counts a loop's body once and the inside of a kernel not at all.
"""

import math
from collections.abc import Iterator
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
    equations = jaxpr.jaxpr.eqns if isinstance(jaxpr, ClosedJaxpr) else jaxpr.eqns
    return sum(_of_equation(equation, platform, repeat_loops) for equation in equations)


def _of_equation(equation: JaxprEqn, platform: str | None, repeat_loops: bool) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_dot(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    jaxprs = [jaxpr for value in parameters.values() for jaxpr in _jaxprs(value)]
    inner = [count_flops(jaxpr, platform, repeat_loops) for jaxpr in jaxprs]
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


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs(value: Any) -> Iterator[Jaxpr | ClosedJaxpr]:
    """All jaxprs in one of an equation's parameters."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
