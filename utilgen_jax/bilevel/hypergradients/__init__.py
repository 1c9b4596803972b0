"""Hypergradients: how a loss after learning depends on the outer variables of the learning."""

from collections.abc import Mapping

from utilgen_jax.bilevel.hypergradients.finite_difference import finite_difference
from utilgen_jax.bilevel.hypergradients.implicit import implicit
from utilgen_jax.bilevel.hypergradients.problem import Bilevel, Estimator, Hypergradient, inner_step
from utilgen_jax.bilevel.hypergradients.unrolled import unrolled

# All of one signature, `problem.Estimator`; the options that each has beyond it are set with functools.partial.
ESTIMATORS: Mapping[str, Estimator] = {
    "unrolled": unrolled,
    "finite_difference": finite_difference,
    "implicit": implicit,
}

__all__ = [
    "ESTIMATORS",
    "Bilevel",
    "Estimator",
    "Hypergradient",
    "finite_difference",
    "implicit",
    "inner_step",
    "unrolled",
]
