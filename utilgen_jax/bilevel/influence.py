"""The influence matrix Π: what each example, under each label, does to the validation loss to first order.

With ḡ the batch gradient that the optimiser is given and θ' the parameters after its step,

    q = (∂θ'/∂ḡ)ᵀ ∇L_val(θ'),      Π_ik = <q, ∇_θ log p_k(x_i; θ)>,

so that ∂L_val/∂w_i = -Σ_k y_ik Π_ik / B and ∂L_val/∂y_ik = -w_i Π_ik / B: the hypergradients of Meta-Weight-Net (Shu et
al. 2019) and of SAFLEX (Ding et al. 2024) are two readings of one matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.types import Params

Apply = Callable[[Params, Any], jax.Array]
# What a training step does to a batch that is weighed and labelled, such as smoothing and mixing: (inputs, targets
# [B, K], whose rows are scaled by the weights) -> the same; linear in the targets, as the cross-entropy is.
Transform = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


@struct.dataclass
class Influence:
    """What `influence` finds.

    Attributes:
        matrix: Π, float32 [B, K]. Σ_k y_ik Π_ik > 0: more weight on example i lowers the validation loss.
        direction: q, like the parameters.
        validation_loss: scalar, after the lookahead step.
        validation_gradient: like the parameters: ∇L_val(θ'), or the average that was taken in its place.
        logits: float32 [B, K], before it.
    """

    matrix: jax.Array
    direction: Params
    validation_loss: jax.Array
    validation_gradient: Params
    logits: jax.Array


def predict(apply: Apply, params: Params, inputs: Any) -> jax.Array:
    """Logits [B, K], in float32 at least: a classifier may compute in half precision, losses and softmax do not."""
    logits = apply(params, inputs)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def cross_entropies(apply: Apply, params: Params, examples: Examples) -> jax.Array:
    """The cross-entropy of each example with its targets: float32 [B]."""
    return optax.softmax_cross_entropy(predict(apply, params, examples.inputs), examples.targets)


def transformed(transform: Transform | None, weights: jax.Array, examples: Examples) -> tuple[jax.Array, Examples]:
    """Weights [B] and examples after a transform, which takes the weights into the targets; None changes nothing."""
    if transform is None:
        return weights, examples
    inputs, targets = transform(examples.inputs, weights[:, None] * examples.targets)
    return jnp.ones_like(weights), dataclasses.replace(examples, inputs=inputs, targets=targets)


def influence(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    params: Params,
    optimizer_state: optax.OptState,
    examples: Examples,
    validation: Examples,
    weights: jax.Array | None = None,
    transform: Transform | None = None,
    validation_apply: Apply | None = None,
    average: Callable[[Params], Params] = lambda gradient: gradient,
) -> Influence:
    """Looks one step of the optimiser ahead, and back along it: three plain gradients' work in all.

    Args:
        apply: (params, inputs) -> logits [B, K]. Batch statistics, if the classifier has any, must be frozen in it.
        optimizer: any optax transformation; its update is differentiated. Adam's kin need `eps_root` > 0.
        params: θ before the step.
        optimizer_state: before the step.
        examples: of the step.
        validation: what the step should be good for.
        weights: of the examples, float32 [B]; None: all 1.
        transform: of the weighted batch that the step is taken on. The matrix stays that of the examples before it:
            of an image itself, where the step sees it mixed with another.
        validation_apply: `apply` for the validation examples; None: the same.
        average: makes what is taken in place of ∇L_val(θ'), such as its average over steps.
    """
    weights = jnp.ones(examples.targets.shape[0]) if weights is None else weights
    step_weights, step_examples = transformed(transform, weights, examples)
    gradient = jax.grad(lambda params: jnp.mean(step_weights * cross_entropies(apply, params, step_examples)))(params)

    def step(gradient: Params) -> Params:
        updates, _ = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates)

    new_params, pull_back = jax.vjp(step, gradient)
    validation_loss, along_params = jax.value_and_grad(
        lambda params: jnp.mean(cross_entropies(validation_apply or apply, params, validation))
    )(new_params)
    along_params = average(along_params)
    (direction,) = pull_back(along_params)

    def log_probabilities(params: Params) -> tuple[jax.Array, jax.Array]:
        logits = predict(apply, params, examples.inputs)
        # Not of the logits: their derivative has the same largest class, but can have another sign.
        return jax.nn.log_softmax(logits), logits

    _, matrix, logits = jax.jvp(log_probabilities, (params,), (direction,), has_aux=True)
    return Influence(matrix, direction, validation_loss, along_params, logits)
