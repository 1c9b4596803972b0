"""Weights and soft labels in closed form from the influence matrix (SAFLEX, ICLR 2024, arXiv 2410.02512)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.weightings.weighting import Params, Weighting, WeightingInputs


def saflex(label_probability: float = 0.9, temperature: float = 1.0) -> Weighting:
    """Relabels each example towards what lowers the validation loss, and drops those that no label makes useful.

        y' = softmax((Π° / std(Π°) + β y) / τ),      w_i = 1 where Σ_k y'_ik Π_ik ≥ 0, else 0,
        β = τ (log(K - 1) + log(p₀ / (1 - p₀))),     Π°_ik = Π_ik - mean_i Π_ik,

    so that an example without influence keeps p₀ on its label, whatever the number of classes K. The form is from
    memory of the paper and derivation. Ours (measured: bilevel/README.md): β by the number of classes, the scale by the
    batch's deviation, and Π°, which leaves out what all examples of a batch have in common. That part says that a class
    should be predicted more often everywhere, which is no reason to give it to one image rather than to another.

    Since Σ_k p_k Π_ik = 0 for the prediction p, a label that is the best class alone would never drop anything.

    Without influence, i.e. in a step without validation, all examples keep weight 1 and their labels.

    Args:
        label_probability: p₀, what a given label keeps at zero influence. 1: the targets are soft labels already, which
            stay as they are at zero influence (and one-hot ones always).
        temperature: τ of the soft label; smaller is harder.
    """

    def apply(params: Params, weighting_inputs: WeightingInputs) -> tuple[jax.Array, jax.Array]:
        del params
        examples, influence = weighting_inputs.examples, weighting_inputs.influence
        if influence is None:
            return jnp.ones(weighting_inputs.logits.shape[0]), examples.targets
        is_weighted = examples.weighted[:, None]
        number = jnp.maximum(jnp.sum(is_weighted), 1)
        # Σ_k p_k Π_ik = 0, but the plain mean is not: the deviation is about it, over the examples that are weighed.
        common = jnp.sum(jnp.where(is_weighted, influence, 0.0), 0) / number
        own = jnp.where(is_weighted, influence - common, 0.0)
        variance = jnp.sum(own**2) / (number * influence.shape[-1])
        evidence = own / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        prior = at_zero_influence(examples.targets, label_probability)
        targets = jax.nn.softmax(jnp.log(prior) + evidence / temperature)
        weights = (jnp.sum(targets * influence, -1) >= 0).astype(targets.dtype)
        return weights, jnp.where(is_weighted, targets, examples.targets)

    return Weighting(init=lambda key: {}, apply=apply, needs_influence=True)


def at_zero_influence(targets: jax.Array, label_probability: float) -> jax.Array:
    """The soft labels of examples without influence: p₀ of each target, the rest spread over the other classes.

    softmax(β y / τ) of a one-hot y, with the β of `saflex`.

    Args:
        targets: float [B, K], K ≥ 2, each row a distribution.
        label_probability: p₀ in (0, 1].
    """
    return label_probability * targets + (1.0 - label_probability) / (targets.shape[-1] - 1) * (1.0 - targets)
