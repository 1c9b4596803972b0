"""Several weightings at once: their weights are multiplied."""

from __future__ import annotations

import jax

from utilgen_jax.bilevel.weightings.weighting import Params, Weighting, WeightingInputs


def product(**weightings: Weighting) -> Weighting:
    """The product of the weights of several weightings, which leave the labels as they are.

    Args:
        weightings: by name, under which their parameters stand, each drawn with a key of its own; none needs influence.

    Raises:
        ValueError: there is none, or one needs influence.
    """
    if not weightings or any(weighting.needs_influence for weighting in weightings.values()):
        raise ValueError("product takes weightings that need no influence, at least one")

    def init(key: jax.Array) -> Params:
        return {
            name: weighting.init(jax.random.fold_in(key, number))
            for number, (name, weighting) in enumerate(weightings.items())
        }

    def apply(params: Params, weighting_inputs: WeightingInputs) -> tuple[jax.Array, jax.Array]:
        weights = [weighting.apply(params[name], weighting_inputs)[0] for name, weighting in weightings.items()]
        total = weights[0]
        for weight in weights[1:]:
            total = total * weight
        return total, weighting_inputs.examples.targets

    return Weighting(init, apply)
