"""The utility in all objectives: the effect of an image on the validation loss, as a function of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.types import Params

# (images float32 [M, H, W, 3] in [-1, 1], labels int [M]) -> float32 [M]; higher is better.
Utility = Callable[[jax.Array, jax.Array], jax.Array]


def influence_utility(
    apply: Callable[[Params, Any], jax.Array],
    params: Params,
    direction: Params,
    to_examples: Callable[[jax.Array, jax.Array], Examples],
) -> Utility:
    """Makes the utility Σ_k y_k Π_k of an image, Π_k = <q, ∇_θ log p_k>, see `utilgen_jax.bilevel.influence`.

    It is linear in q. If q belongs to the step on the images that are valued, -mean(utility) has the same gradient with
    respect to them as the validation loss after that step.

    Args:
        apply: (params, inputs) -> logits [M, K], the classifier.
        params: θ before the step.
        direction: q, `influence(...).direction`.
        to_examples: (images, labels) -> training examples, such as `ClassifierInput.examples`.
    """

    def utility(images: jax.Array, labels: jax.Array) -> jax.Array:
        examples = to_examples(images, labels)

        def log_probabilities(params: Params) -> jax.Array:
            return jax.nn.log_softmax(apply(params, examples.inputs).astype(jnp.float32))

        _, matrix = jax.jvp(log_probabilities, (params,), (direction,))
        return jnp.sum(examples.targets * matrix, axis=-1)

    return utility
