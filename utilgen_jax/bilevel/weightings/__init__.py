"""Weightings: what each example of a batch counts, and under which label; each usable in any training loop."""

from utilgen_jax.bilevel.weightings.importance import importance_ratio
from utilgen_jax.bilevel.weightings.networks import FEATURES, feature_network, loss_network
from utilgen_jax.bilevel.weightings.product import product
from utilgen_jax.bilevel.weightings.saflex import saflex
from utilgen_jax.bilevel.weightings.uniform import uniform
from utilgen_jax.bilevel.weightings.weighting import Weighting, WeightingInputs, relative_weights

__all__ = [
    "FEATURES",
    "WeightingInputs",
    "Weighting",
    "feature_network",
    "importance_ratio",
    "loss_network",
    "product",
    "relative_weights",
    "saflex",
    "uniform",
]
