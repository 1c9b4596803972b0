"""Weights and soft labels in closed form from the influence matrix (SAFLEX, ICLR 2024, arXiv 2410.02512)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.weightings.weighting import Params, Weighting, WeightingInputs


def saflex(label_strength: float = 4.0, temperature: float = 1.0) -> Weighting:
    """Relabels each example towards what lowers the validation loss, and drops those that no label makes useful.

        y' = softmax((Π / std(Π) + β y) / τ),      w_i = 1 where Σ_k y'_ik Π_ik ≥ 0, else 0.

    The form is from memory of the paper and derivation; the scale by the batch's deviation and the defaults are ours
    (measured: bilevel/README.md).

    Since Σ_k p_k Π_ik = 0 for the prediction p, a label that is the best class alone would never drop anything.

    Without influence, i.e. in a step without validation, all examples keep weight 1 and their labels.

    Args:
        label_strength: β, how much the given label counts.
        temperature: τ of the soft label; smaller is harder.
    """

    def apply(params: Params, weighting_inputs: WeightingInputs) -> tuple[jax.Array, jax.Array]:
        del params
        examples = weighting_inputs.examples
        if weighting_inputs.influence is None:
            return jnp.ones(weighting_inputs.logits.shape[0]), examples.targets
        is_weighted = examples.weighted[:, None]
        number = jnp.maximum(jnp.sum(is_weighted) * weighting_inputs.influence.shape[-1], 1)
        # Σ_k p_k Π_ik = 0, but the plain mean is not: the deviation is about it, over the examples that are weighed.
        mean = jnp.sum(jnp.where(is_weighted, weighting_inputs.influence, 0.0)) / number
        variance = jnp.sum(jnp.where(is_weighted, (weighting_inputs.influence - mean) ** 2, 0.0)) / number
        scale = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        targets = jax.nn.softmax((weighting_inputs.influence / scale + label_strength * examples.targets) / temperature)
        weights = (jnp.sum(targets * weighting_inputs.influence, -1) >= 0).astype(targets.dtype)
        return weights, jnp.where(is_weighted, targets, examples.targets)

    return Weighting(init=lambda key: {}, apply=apply, needs_influence=True)
