"""The bilevel update: the classifier's step, and the outer gradient that reaches through it, in one pure function.

With weights w of parameters ψ, classifier parameters θ and a differentiable optimiser step,

    θ'(ψ) = θ - step(∇_θ Σ_i w_i(ψ) ℓ_i(θ) / B),      ψ ← ψ - step(∇_ψ L_val(θ'(ψ))),

which is Meta-Weight-Net's one-step lookahead (Shu et al. 2019, equations 3-5) and UtilGen's weight allocation. θ' is
also the classifier's new state, rather than being computed again with the new ψ: one forward and backward pass less,
and the two differ by one step of ψ.

Nothing in here knows a config; everything comes in as functions over pytrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Params = Any
Batch = Any


@struct.dataclass
class BilevelState:
    """Both levels of the update.

    Attributes:
      params: the classifier's θ.
      optimizer_state: of the classifier's optimiser.
      weight_params: the weighting's ψ.
      weight_optimizer_state: of the weighting's optimiser.
    """

    params: Params
    optimizer_state: optax.OptState
    weight_params: Params
    weight_optimizer_state: optax.OptState


@struct.dataclass
class BilevelMetrics:
    """What one update saw, before it: all float32.

    Attributes:
      train_loss: scalar, the weighted loss of the batch.
      validation_loss: scalar, after the lookahead step.
      losses: [B], of the batch's samples.
      weights: [B], theirs.
    """

    train_loss: jax.Array
    validation_loss: jax.Array
    losses: jax.Array
    weights: jax.Array


def init_bilevel(
    params: Params,
    weight_params: Params,
    optimizer: optax.GradientTransformation,
    weight_optimizer: optax.GradientTransformation,
) -> BilevelState:
    """Puts both levels' parameters and fresh optimiser states together."""
    return BilevelState(params, optimizer.init(params), weight_params, weight_optimizer.init(weight_params))


def make_bilevel_update(
    sample_losses: Callable[[Params, Batch], jax.Array],
    sample_weights: Callable[[Params, jax.Array, Batch], jax.Array],
    validation_loss: Callable[[Params, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    weight_optimizer: optax.GradientTransformation,
) -> Callable[[BilevelState, Batch, Batch], tuple[BilevelState, BilevelMetrics]]:
    """Makes the update of classifier and weighting; pure, to be jitted by the caller.

    Args:
      sample_losses: (params, batch) -> float32 [B].
      sample_weights: (weight params, losses [B], batch) -> float32 [B]. The losses are detached: the weighting sees how
        hard a sample is, and cannot lower its own input.
      validation_loss: (params, validation batch) -> scalar.
      optimizer: any optax transformation; the outer gradient goes through its update. Adam's is not differentiable
        where a gradient is exactly zero: give it `eps_root`.
      weight_optimizer: of the weighting.

    Returns:
      (state, batch, validation batch) -> (new state, metrics).
    """

    def outer_loss(
        weight_params: Params, state: BilevelState, batch: Batch, validation: Batch
    ) -> tuple[jax.Array, Any]:
        def inner_loss(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            losses = sample_losses(params, batch)
            weights = sample_weights(weight_params, jax.lax.stop_gradient(losses), batch)
            return jnp.mean(weights * losses), (losses, weights)

        gradients, (losses, weights) = jax.grad(inner_loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = validation_loss(params, validation)
        return loss, (params, optimizer_state, BilevelMetrics(jnp.mean(weights * losses), loss, losses, weights))

    def update(state: BilevelState, batch: Batch, validation: Batch) -> tuple[BilevelState, BilevelMetrics]:
        gradients, (params, optimizer_state, metrics) = jax.grad(outer_loss, has_aux=True)(
            state.weight_params, state, batch, validation
        )
        updates, weight_optimizer_state = weight_optimizer.update(
            gradients, state.weight_optimizer_state, state.weight_params
        )
        weight_params = optax.apply_updates(state.weight_params, updates)
        return BilevelState(params, optimizer_state, weight_params, weight_optimizer_state), metrics

    return update
