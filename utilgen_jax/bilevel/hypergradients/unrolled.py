"""The exact hypergradient: backpropagation through the inner steps themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.bilevel.hypergradients.problem import (
    Batch,
    Bilevel,
    Hypergradient,
    Params,
    inner_step,
    num_inner_steps,
)
from utilgen_jax.runtime.loops import remat_steps


def unrolled(
    problem: Bilevel,
    outer: Params,
    params: Params,
    optimizer_state: optax.OptState,
    batches: Batch,
    validation: Batch,
    *,
    loop: bool | None = None,
) -> Hypergradient:
    """Backpropagates through K inner steps (Maclaurin et al. 2015; K = 1: Meta-Weight-Net, Shu et al. 2019).

    Exact for the loss after these K steps. K = 1 costs about three plain gradients. With more, each step is
    rematerialised, so that memory holds the parameters of every step but the activations of one.

    Args:
        problem: the two losses and the inner optimiser, which is differentiated.
        outer: ψ.
        params: θ before the first step.
        optimizer_state: before the step.
        batches: every leaf [K, ...], one batch a step.
        validation: the outer loss's batch.
        loop: of several steps, see `remat_steps`.
    """
    steps = num_inner_steps(batches)

    def look_ahead(outer: Params):
        def step(carry, batch):
            params, optimizer_state = carry
            params, optimizer_state, loss, auxiliary = inner_step(problem, outer, params, optimizer_state, batch)
            return (params, optimizer_state), (loss, auxiliary)

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        if steps == 1:
            (new_params, new_state), (loss, auxiliary) = step((params, optimizer_state), first)
        else:
            (new_params, new_state), (losses, auxiliaries) = remat_steps(step, (params, optimizer_state), batches, loop)
            loss, auxiliary = losses[0], jax.tree.map(lambda leaf: leaf[0], auxiliaries)
        return problem.outer_loss(new_params, outer, validation), (new_params, new_state, loss, auxiliary)

    (outer_loss, (params, optimizer_state, loss, auxiliary)), gradient = jax.value_and_grad(look_ahead, has_aux=True)(
        outer
    )
    return Hypergradient(gradient, outer_loss, params, optimizer_state, jnp.asarray(loss), auxiliary)
