"""What every weighting is given and gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.types import Params


@struct.dataclass
class WeightingInputs:
    """What a weighting may look at; all of it numbers, through which no gradient flows.

    Attributes:
        examples: the batch.
        logits: what the classifier says of it now, float32 [B, K].
        influence: Π of `bilevel.influence`, float32 [B, K]; None where it is not needed or no validation is at
            hand.
    """

    examples: Examples
    logits: jax.Array
    influence: jax.Array | None = None

    @property
    def losses(self) -> jax.Array:
        """Cross-entropy with the targets: float32 [B]."""
        return optax.softmax_cross_entropy(self.logits, self.examples.targets)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How a batch's examples are weighed and labelled: a pair of pure functions, in the manner of optax.

    Attributes:
        init: PRNG key -> parameters; an empty dict where nothing is learnt.
        apply: (parameters, signals) -> (weights float32 [B], non-negative; targets float32 [B, K]). Only the ratio of
            weights counts, see `relative_weights`.
        needs_influence: `apply` wants `weighting_inputs.influence`, which costs three gradients.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, WeightingInputs], tuple[jax.Array, jax.Array]]
    needs_influence: bool = False


def relative_weights(weights: jax.Array, is_weighted: jax.Array) -> jax.Array:
    """Weights with mean 1 over the examples that are weighed, and 1 for the others.

    The weighting then learns which of the doubtful examples count, not how much all of them do: "all weights up", which
    helps early in training, would dominate (measured: bilevel/README.md). As in Meta-Weight-Net's public code, but for
    batches of which a part is weighed.

    Args:
        weights: non-negative, float32 [B]; where all weighed ones are zero they stay so.
        is_weighted: bool [B].
    """
    number = jnp.maximum(jnp.sum(is_weighted), 1)
    mean = jnp.sum(jnp.where(is_weighted, weights, 0.0)) / number
    return jnp.where(is_weighted, weights / jnp.where(mean > 0, mean, 1.0), 1.0)
