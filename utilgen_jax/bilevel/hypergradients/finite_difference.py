"""The lookahead's hypergradient without second derivatives: a difference of two first ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.bilevel.hypergradients.problem import Batch, Bilevel, Hypergradient, Params, only_batch


def finite_difference(
    problem: Bilevel,
    outer: Params,
    params: Params,
    optimizer_state: optax.OptState,
    batches: Batch,
    validation: Batch,
    *,
    epsilon: float = 1e-2,
) -> Hypergradient:
    """One step of lookahead by central differences (DARTS, Liu et al. 2019, eq. 8; SAMA, Choe et al. 2023, eq. 7).

    With ḡ the inner gradient and q = (∂θ'/∂ḡ)ᵀ ∇L_outer(θ'), the part through θ' is the derivative of ∇_ψ L_inner at θ
    along q. As in SAMA, q comes from the optimiser that is used, here by its exact VJP. No graph of a gradient is kept,
    so it needs the memory of a plain step; the error is of second order in `epsilon`, plus rounding.

    Args:
        problem: the two losses and the inner optimiser, whose update is differentiated, the losses once only. The inner
            loss is evaluated beside `params` too, so nothing in it that depends on them may be detached.
        outer: ψ.
        params: θ before the step.
        optimizer_state: before the step.
        batches: every leaf [1, ...]: one step.
        validation: the outer loss's batch.
        epsilon: length of the step along q, in the norm of all parameters.

    Raises:
        ValueError: batches for more than one step.
    """
    batch = only_batch(batches, "finite_difference")
    (loss, auxiliary), gradient = jax.value_and_grad(problem.inner_loss, has_aux=True)(params, outer, batch)

    def step(gradient: Params) -> tuple[Params, optax.OptState]:
        updates, new_state = problem.optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), new_state

    new_params, pull_back, new_state = jax.vjp(step, gradient, has_aux=True)
    outer_loss, (along_params, direct) = jax.value_and_grad(problem.outer_loss, (0, 1))(new_params, outer, validation)
    (direction,) = pull_back(along_params)
    scale = epsilon / jnp.maximum(optax.tree.norm(direction), jnp.finfo(jnp.float32).tiny)

    def outer_gradient_at(sign: float) -> Params:
        moved = jax.tree.map(lambda leaf, along: leaf + sign * scale * along, params, direction)
        return jax.grad(lambda outer: problem.inner_loss(moved, outer, batch)[0])(outer)

    through = jax.tree.map(
        lambda above, below: (above - below) / (2 * scale), outer_gradient_at(1.0), outer_gradient_at(-1.0)
    )
    total = jax.tree.map(jnp.add, direct, through)
    return Hypergradient(total, outer_loss, new_params, new_state, loss, auxiliary)
