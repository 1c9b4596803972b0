"""No weighting: the baseline of all others."""

from __future__ import annotations

import jax.numpy as jnp

from utilgen_jax.bilevel.weightings.weighting import Weighting


def uniform() -> Weighting:
    """Every example counts the same, under the label that it came with."""
    return Weighting(
        init=lambda key: {},
        apply=lambda params, weighting_inputs: (
            jnp.ones(weighting_inputs.logits.shape[0]),
            weighting_inputs.examples.targets,
        ),
    )
