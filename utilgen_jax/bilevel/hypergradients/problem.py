"""What every hypergradient estimator is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import struct

from utilgen_jax.types import Params

Batch = Any


@struct.dataclass
class Bilevel:
    """Two levels: `params` θ learn from the inner loss, and `outer` ψ from what the outer loss makes of the new θ.

    Attributes:
        inner_loss: (params, outer, batch) -> (scalar, auxiliary pytree); its gradient to params feeds the optimiser.
        outer_loss: (params, outer, validation batch) -> scalar.
        optimizer: of params; any optax transformation. Where the estimator differentiates its update (see each one's
            docstring), Adam's kin need `eps_root` > 0, or a gradient of exactly zero gives NaN (optax issue 882).
    """

    inner_loss: Callable[[Params, Params, Batch], tuple[jax.Array, Any]] = struct.field(pytree_node=False)
    outer_loss: Callable[[Params, Params, Batch], jax.Array] = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)


@struct.dataclass
class Hypergradient:
    """One outer gradient, and the inner step or steps that it looked through.

    Attributes:
        gradient: d outer_loss / d outer, like outer; None where only inner steps were taken.
        outer_loss: scalar, at the new params; None where only inner steps were taken.
        params: after the inner step(s).
        optimizer_state: after them.
        inner_loss: scalar, of the first inner batch, before its step.
        auxiliary: what inner_loss returned with it.
    """

    gradient: Params
    outer_loss: Any
    params: Params
    optimizer_state: optax.OptState
    inner_loss: jax.Array
    auxiliary: Any


# (problem, outer, params, optimiser state, batches with a leading axis of inner steps, validation) -> Hypergradient
Estimator = Callable[[Bilevel, Params, Params, optax.OptState, Batch, Batch], Hypergradient]


def inner_step(
    problem: Bilevel, outer: Params, params: Params, optimizer_state: optax.OptState, batch: Batch
) -> tuple[Params, optax.OptState, jax.Array, Any]:
    """One step of the inner optimiser: (new params, new optimiser state, loss before it, auxiliary)."""
    (loss, auxiliary), gradient = jax.value_and_grad(problem.inner_loss, has_aux=True)(params, outer, batch)
    updates, optimizer_state = problem.optimizer.update(gradient, optimizer_state, params)
    return optax.apply_updates(params, updates), optimizer_state, loss, auxiliary


def num_inner_steps(batches: Batch) -> int:
    """The leading axis of every leaf of `batches`.

    Raises:
        ValueError: the leaves disagree, or there is none.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1:
        raise ValueError(f"batches need one leading axis, the inner steps; their leaves have {sorted(lengths)}")
    return lengths.pop()


def only_batch(batches: Batch, estimator: str) -> Batch:
    """The one batch of an estimator that looks through one step only; ValueError where there are more."""
    steps = num_inner_steps(batches)
    if steps != 1:
        raise ValueError(f"{estimator} looks through one inner step; batches have {steps}")
    return jax.tree.map(lambda leaf: leaf[0], batches)
