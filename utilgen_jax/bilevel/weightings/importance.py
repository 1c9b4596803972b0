"""Weights as the ratio of two ways of asking: what is learnt is an adapter over prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.weightings.weighting import Params, Weighting, WeightingInputs


def importance_ratio(num_attributes: int) -> Weighting:
    """The weight of an example by its prompt's attributes: w = Π_g π'_g(a_g) / π_g(a_g) ∝ exp(Σ_g b_{a_g}); ours.

    The examples were drawn by asking for an option a_g of each group g, independently, with the probabilities π_g.
    Weighed so, they stand for examples drawn with the probabilities π'_g ∝ π_g exp(b). The gradient of the validation
    loss to b is thus that of an adapter over prompts, and `PromptAttributes.reweighted` asks by it next time. A few
    numbers for all
    classes: what a handful of validation images says of single examples is noise, of an option it is signal.

    Args:
        num_attributes: A, the width of `Examples.attributes`.
    """

    def apply(params: Params, weighting_inputs: WeightingInputs) -> tuple[jax.Array, jax.Array]:
        attributes = weighting_inputs.examples.attributes
        if attributes is None:
            raise ValueError("the weighting looks at attributes, which these examples do not have")
        return jnp.exp(attributes @ params["logits"]), weighting_inputs.examples.targets

    return Weighting(init=lambda key: {"logits": jnp.zeros(num_attributes)}, apply=apply)
