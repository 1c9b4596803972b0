"""The two losses of the bilevel problem, as functions of what the outer level pulls: weights and inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from utilgen_jax.bilevel.examples import Examples, concatenate
from utilgen_jax.bilevel.influence import Apply, Transform, cross_entropies, predict, transformed
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, relative_weights
from utilgen_jax.runtime.loops import remat_steps
from utilgen_jax.runtime.sharding import split_batch
from utilgen_jax.types import Params, PyTree


@struct.dataclass
class OuterVariables:
    """What the hypergradient is taken of.

    Attributes:
        weighting: ψ.
        inputs: generated inputs [K, M, ...] of K inner steps; None where there are none.
        weight_perturbations: zeros [K, B], added to the weights: their gradient tells the utility of each example.
    """

    weighting: Params
    inputs: PyTree
    weight_perturbations: jax.Array


@struct.dataclass
class InnerBatch:
    """What one inner step is given.

    Attributes:
        index: which of the K steps it is, int32.
        examples: given ones, or None.
        generated: generated ones, whose inputs are taken from the outer variables; or None.
        logits: of all examples before the step, for the weighting to see, float32 [B, C]; None where they are not known
            before the steps start.
        influence: Π float32 [B, C], where the weighting needs it; or None.
    """

    index: jax.Array
    examples: Examples | None
    generated: Examples | None
    logits: jax.Array | None = None
    influence: jax.Array | None = None

    def all_examples(self, inputs: PyTree) -> Examples:
        """The given examples, and after them the generated ones with the `inputs` of all steps [K, M, ...]."""
        if self.generated is None:
            return split_batch(self.examples)
        own = jax.tree.map(lambda leaf: leaf[self.index], inputs)
        generated = dataclasses.replace(self.generated, inputs=own)
        return split_batch(generated if self.examples is None else concatenate(self.examples, generated))


def make_predict(apply: Apply, num_microbatches: int) -> Callable[[Params, PyTree], jax.Array]:
    """Logits of a whole batch, in parts, without gradients: (params, inputs) -> float32 [B, C]."""

    def whole(params: Params, inputs: PyTree) -> jax.Array:
        return jax.lax.stop_gradient(predict(apply, params, inputs))

    def in_parts(params: Params, inputs: PyTree) -> jax.Array:
        frozen, parts = jax.lax.stop_gradient((params, _split(inputs, num_microbatches)))
        _, logits = remat_steps(lambda _, part: (None, predict(apply, frozen, part)), None, parts)
        return logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])

    return whole if num_microbatches == 1 else in_parts


@struct.dataclass
class Weighed:
    """What the weighting made of a batch.

    Attributes:
        losses: float32 [B], with the labels as they came.
        weights: float32 [B], relative, see `weightings.relative_weights`.
        targets: float32 [B, C], the labels that it gave.
    """

    losses: jax.Array
    weights: jax.Array
    targets: jax.Array


def make_inner_loss(
    apply: Apply, weighting: Weighting, num_microbatches: int, transform: Transform | None = None
) -> Callable[[Params, OuterVariables, InnerBatch], tuple[jax.Array, Weighed]]:
    """The weighted loss of a batch: (params, outer_variables, batch) -> (scalar, `Weighed`).

    The weighting sees numbers only: an example cannot gain weight by changing what the weighting looks at.

    Args:
        apply: (params, inputs) -> logits.
        weighting: its parameters are in the outer variables.
        num_microbatches: parts of a batch, of which one at a time is in memory.
        transform: of the weighted batch, see `influence.Transform`.
    """
    predict_batch = make_predict(apply, num_microbatches)

    def loss_of(params: Params, weights: jax.Array, examples: Examples) -> jax.Array:
        weights, examples = transformed(transform, weights, examples)
        if num_microbatches == 1:
            return jnp.mean(weights * cross_entropies(apply, params, examples))

        def add(total: jax.Array, part: tuple[jax.Array, Examples]) -> tuple[jax.Array, None]:
            return total + jnp.sum(part[0] * cross_entropies(apply, params, part[1])), None

        parts = _split((weights, examples), num_microbatches)
        return remat_steps(add, jnp.zeros((), weights.dtype), parts)[0] / len(weights)

    def inner_loss(params: Params, outer_variables: OuterVariables, batch: InnerBatch) -> tuple[jax.Array, Weighed]:
        examples = batch.all_examples(outer_variables.inputs)
        logits = predict_batch(params, examples.inputs) if batch.logits is None else batch.logits
        weighting_inputs = jax.lax.stop_gradient(WeightingInputs(examples, logits, batch.influence))
        weights, targets = weighting.apply(outer_variables.weighting, weighting_inputs)
        weights = relative_weights(weights, examples.weighted)
        perturbed = weights + outer_variables.weight_perturbations[batch.index]
        loss = loss_of(params, perturbed, dataclasses.replace(examples, targets=targets))
        return loss, Weighed(weighting_inputs.losses, weights, targets)

    return inner_loss


def make_outer_loss(apply: Apply) -> Callable[[Params, OuterVariables, Examples], jax.Array]:
    """The mean cross-entropy on validation examples: (params, outer_variables, validation) -> scalar."""

    def outer_loss(params: Params, outer_variables: OuterVariables, validation: Examples) -> jax.Array:
        del outer_variables
        return jnp.mean(cross_entropies(apply, params, split_batch(validation)))

    return outer_loss


def _split(tree: PyTree, number: int) -> PyTree:
    """Every leaf [B, ...] as [number, B / number, ...], each part taken from all over the batch."""

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % number:
            raise ValueError(f"a batch of {leaf.shape[0]} does not divide into {number} microbatches")
        return leaf.reshape(leaf.shape[0] // number, number, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)
