"""The hypergradient at the inner optimum, from the implicit function theorem; no steps are remembered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.bilevel.hypergradients.problem import Batch, Bilevel, Hypergradient, Params, inner_step, only_batch


def implicit(
    problem: Bilevel,
    outer: Params,
    params: Params,
    optimizer_state: optax.OptState,
    batches: Batch,
    validation: Batch,
    *,
    num_terms: int = 20,
    step_size: float = 0.1,
    damping: float = 0.0,
) -> Hypergradient:
    """Takes one inner step and differentiates as if it had led to the optimum θ*(ψ) (Lorraine et al. 2020, alg. 3).

    d L_outer / dψ = ∂_ψ L_outer - (∂_ψ ∇_θ L_inner)ᵀ (H + damping)⁻¹ ∇_θ L_outer, with H the inner Hessian and
    its inverse by a Neumann series of `num_terms` Hessian-vector products. The further θ is from the optimum, and the
    fewer the terms, the more the answer is biased; it does not depend on the optimiser.

    Args:
        problem: the two losses and the inner optimiser, which is not differentiated.
        outer: ψ.
        params: θ before the step.
        optimizer_state: before the step.
        batches: every leaf [1, ...]: one step.
        validation: the outer loss's batch.
        num_terms: of the Neumann series.
        step_size: α; the series converges where it is below 2 / (largest eigenvalue of H + damping).
        damping: added to H; makes the answer smoother and shorter-sighted.

    Raises:
        ValueError: batches for more than one step.
    """
    batch = only_batch(batches, "implicit")
    params, optimizer_state, loss, auxiliary = inner_step(problem, outer, params, optimizer_state, batch)
    outer_loss, (along_params, direct) = jax.value_and_grad(problem.outer_loss, (0, 1))(params, outer, validation)

    def inner_gradient(params: Params, outer: Params) -> Params:
        return jax.grad(lambda params: problem.inner_loss(params, outer, batch)[0])(params)

    # Linearised once: each term of the series is then one cheap linear pass.
    _, hessian_product = jax.linearize(lambda params: inner_gradient(params, outer), params)

    def add_term(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], None]:
        term, total = carry
        curved = hessian_product(term)
        term = jax.tree.map(lambda v, hv: v - step_size * (hv + damping * v), term, curved)
        return (term, jax.tree.map(jnp.add, total, term)), None

    (_, series), _ = jax.lax.scan(add_term, (along_params, along_params), None, length=num_terms - 1)
    _, pull_back = jax.vjp(lambda outer: inner_gradient(params, outer), outer)
    (through,) = pull_back(series)
    total = jax.tree.map(lambda straight, bent: straight - step_size * bent, direct, through)
    return Hypergradient(total, outer_loss, params, optimizer_state, loss, auxiliary)
