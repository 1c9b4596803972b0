"""The update itself.

With classifier parameters θ, weighting ψ and adapter φ, a batch of given examples and of those that φ generates,

    θ' = θ - step(∇_θ Σ_i w_i(ψ) ℓ(f(x_i(φ); θ), y_i) / B),      (ψ, φ) ← (ψ, φ) - step(∇ [L_val(θ') + R(x(φ), φ)]).

The outer gradient first reaches the outer variables: weights and generated inputs. From the inputs it is pulled back
through the generator, which therefore runs once and is differentiated once, whatever the estimator. θ' is also the
classifier's new state, not computed again with the new ψ and φ (as Meta-Weight-Net does, Shu et al. 2019): one forward
and backward pass less, and the two differ by one outer step.

Nothing in here knows a config or a generator; everything comes in as functions over pytrees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.hypergradients import Bilevel, Estimator, Hypergradient, inner_step, unrolled
from utilgen_jax.bilevel.influence import Apply, Transform, influence
from utilgen_jax.bilevel.losses import (
    InnerBatch,
    OuterVariables,
    Weighed,
    make_inner_loss,
    make_outer_loss,
    make_predict,
)
from utilgen_jax.bilevel.nan_check import note_nonfinite
from utilgen_jax.bilevel.state import BilevelMetrics, BilevelState, watched
from utilgen_jax.bilevel.weightings import Weighting
from utilgen_jax.types import Params

SampleInputs = Any
# (adapter, sample inputs) -> examples, or examples and a penalty
Generate = Callable[[Params, SampleInputs], Examples | tuple[Examples, jax.Array]]
# (generated inputs, adapter, classifier params, sample inputs) -> scalar
Regularizer = Callable[[Any, Params, Params, SampleInputs], jax.Array]
Update = Callable[..., tuple[BilevelState, BilevelMetrics]]


def make_bilevel_update(
    apply: Apply | tuple[Apply, Apply],
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    *,
    generate: Generate | None = None,
    regularizer: Regularizer | None = None,
    estimator: Estimator = unrolled,
    num_inner_steps: int = 1,
    num_microbatches: int = 1,
    transform: Transform | None = None,
) -> Update:
    """Makes the update; pure, to be jitted by the caller, best with `donate_argnums=0`.

    Args:
        apply: (classifier params, inputs) -> logits [B, K], in any dtype; losses are float32. Batch statistics, if it
            has any, must be frozen in it. Or two of them, of which the second is for validation examples, where
            classes are as frequent in these as not in the batches.
        weighting: see `utility.weightings`; what it learns is `state.outer['weighting']`.
        optimizer: of the classifier; any optax transformation, the outer gradient goes through its update. Adam's kin
            need `eps_root` > 0, or a gradient of exactly zero makes NaN.
        outer_optimizer: of weighting and adapter together; `optax.partition` gives each its own.
        generate: (adapter, sample inputs) -> examples, differentiable in the adapter, which is
            `state.outer['adapter']`. Or -> (examples, penalty), of the adapter and computed with them: a scalar, a part
            of R.
        regularizer: R, added to the outer loss where something is generated: (generated inputs [K M, ...], adapter,
            classifier params, sample inputs) -> scalar, differentiated in the first two.
        estimator: of the hypergradient, see `hypergradients`.
        num_inner_steps: K, inner steps an update; more than one needs an estimator that looks through them, and a
            leading axis [K, ...] of examples and sample inputs.
        num_microbatches: the batch is worked on in so many parts, of which one at a time is in memory; the result is
            that of the whole batch, for one more forward pass or two.
        transform: of a batch between its weighting and the step, such as Mixup; see `influence.Transform`.

    Returns:
        update(state, examples, validation=None, sample inputs=None) -> (new state, `BilevelMetrics`). Without
        validation it is the inner step alone: pass validation every m-th time to update the outer level every m steps.
        (That makes two programs; one with a condition in it would meet XLA's slow path for convolutions on CPU.)
        Without sample inputs nothing is generated; with some, examples may be None.

    Raises:
        ValueError: the settings do not suit each other.
    """
    if weighting.needs_influence and num_inner_steps > 1:
        raise ValueError("a weighting that needs influence looks one step ahead: num_inner_steps must be 1")
    apply, validation_apply = apply if isinstance(apply, tuple) else (apply, apply)
    predict_batch = make_predict(apply, num_microbatches)
    inner_loss = make_inner_loss(apply, weighting, num_microbatches, transform)
    problem = Bilevel(inner_loss, make_outer_loss(validation_apply), optimizer)

    def update(
        state: BilevelState,
        examples: Examples | None,
        validation: Examples | None = None,
        sample_inputs: SampleInputs | None = None,
    ) -> tuple[BilevelState, BilevelMetrics]:
        if num_inner_steps > 1:
            sample_inputs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sample_inputs)
        generated, penalty, pull_back = _generate(generate, state.outer.get("adapter"), sample_inputs, num_inner_steps)
        if num_inner_steps == 1:
            examples = jax.tree.map(lambda leaf: leaf[None], examples)
        size = sum(part.targets.shape[1] for part in (examples, generated) if part is not None)
        outer_variables = OuterVariables(
            weighting=state.outer.get("weighting", {}),
            inputs=None if generated is None else generated.inputs,
            weight_perturbations=jnp.zeros(
                (num_inner_steps, size), jnp.result_type(*jax.tree.leaves(state.params), jnp.float32)
            ),
        )
        batches = InnerBatch(jnp.arange(num_inner_steps), examples, generated)
        start = (state.params, state.optimizer_state)
        utilities = gradient = None
        if num_inner_steps == 1:
            # Before the step: an estimator may evaluate the inner loss elsewhere, and what is detached must not move.
            batch = jax.tree.map(lambda leaf: leaf[0], batches).all_examples(outer_variables.inputs)
            batches = dataclasses.replace(batches, logits=predict_batch(state.params, batch.inputs)[None])
        new = dataclasses.replace(state, step=state.step + num_inner_steps)
        if weighting.needs_influence and validation is not None:
            ahead = influence(
                apply,
                optimizer,
                *start,
                batch,
                validation,
                transform=transform,
                validation_apply=validation_apply,
                average=partial(_average_with, state.validation_gradient, state.validation_decay),
            )
            if state.validation_gradient is not None:
                new = dataclasses.replace(new, validation_gradient=ahead.validation_gradient)
            batches = dataclasses.replace(batches, influence=ahead.matrix[None])
            utilities = jnp.sum(batch.targets * ahead.matrix, -1)

        if validation is None:
            found = _inner_steps(problem, outer_variables, *start, batches)
        elif utilities is not None and not jax.tree.leaves(state.outer):
            # The influence has told all there is to know; nothing is learnt from the validation loss itself.
            found = _inner_steps(problem, outer_variables, *start, batches)
            found = dataclasses.replace(found, outer_loss=ahead.validation_loss)
        else:
            found = estimator(problem, outer_variables, *start, batches, validation)
            utilities = -size * found.gradient.weight_perturbations[0]
            gradient = jax.tree.map(jnp.zeros_like, state.outer) | {"weighting": found.gradient.weighting}
            if generated is not None and pull_back is not None:
                of_inputs, of_adapter = found.gradient.inputs, None
                if regularizer is not None:
                    value, (more, of_adapter) = _regularize(regularizer, generated, state, sample_inputs)
                    of_inputs = jax.tree.map(jnp.add, of_inputs, more)
                    penalty = value if penalty is None else penalty + value
                (gradient["adapter"],) = pull_back(of_inputs)
                if of_adapter is not None:
                    gradient["adapter"] = jax.tree.map(jnp.add, gradient["adapter"], of_adapter)
            gradient = {name: gradient[name] for name in state.outer}
            updates, outer_optimizer_state = outer_optimizer.update(gradient, state.outer_optimizer_state, state.outer)
            outer = optax.apply_updates(state.outer, updates)
            new = dataclasses.replace(new, outer=outer, outer_optimizer_state=outer_optimizer_state)

        weighed: Weighed = found.auxiliary
        seen = watched(
            found.params,
            new.outer,
            inputs=outer_variables.inputs,
            losses=weighed.losses,
            weights=weighed.weights,
            validation_loss=found.outer_loss,
            gradient=gradient,
        )
        new = dataclasses.replace(
            new,
            params=found.params,
            optimizer_state=found.optimizer_state,
            ema_params=_average(state.ema_params, found.params, state.ema_decay),
            first_nonfinite=note_nonfinite(state.first_nonfinite, seen, state.step),
        )
        metrics = BilevelMetrics(
            train_loss=found.inner_loss,
            validation_loss=found.outer_loss,
            penalty=penalty,
            losses=weighed.losses,
            weights=weighed.weights,
            targets=weighed.targets,
            utilities=utilities,
            first_nonfinite=new.first_nonfinite,
        )
        return new, metrics

    return update


def _regularize(
    regularizer: Regularizer, generated: Examples, state: BilevelState, sample_inputs: SampleInputs
) -> tuple[jax.Array, tuple[Any, Params]]:
    """The regularizer's value, and its gradients in the generated inputs [K, M, ...] and the adapter."""

    def penalty(inputs: Any, adapter: Params) -> jax.Array:
        flat_inputs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), inputs)
        return regularizer(flat_inputs, adapter, jax.lax.stop_gradient(state.params), sample_inputs)

    return jax.value_and_grad(penalty, argnums=(0, 1))(generated.inputs, state.outer["adapter"])


def _generate(
    generate: Generate | None,
    adapter: Params,
    sample_inputs: SampleInputs,
    num_inner_steps: int,
) -> tuple[Examples | None, jax.Array | None, Callable[[Any], tuple[Params]] | None]:
    """Generated examples [K, M, ...], their penalty, and the outer gradient of the adapter by that of their inputs."""
    if sample_inputs is None:
        return None, None, None
    if generate is None:
        raise ValueError("sample inputs need a `generate` that fulfils them")

    def generate_images(adapter: Params) -> tuple[tuple[Any, jax.Array | None], Examples]:
        made = generate(adapter, sample_inputs)
        examples, penalty = made if isinstance(made, tuple) else (made, None)
        examples = jax.tree.map(lambda leaf: leaf.reshape(num_inner_steps, -1, *leaf.shape[1:]), examples)
        return (examples.inputs, penalty), examples

    (_, penalty), pull_back, generated = jax.vjp(generate_images, adapter, has_aux=True)
    return generated, penalty, lambda of_inputs: pull_back((of_inputs, jax.tree.map(jnp.ones_like, penalty)))


def _inner_steps(
    problem: Bilevel,
    outer_variables: OuterVariables,
    params: Params,
    optimizer_state: optax.OptState,
    batches: InnerBatch,
) -> Hypergradient:
    """The inner steps without an outer level, in the form of an estimator's answer."""
    seen = []
    for index in range(batches.index.shape[0]):
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
        params, optimizer_state, loss, auxiliary = inner_step(problem, outer_variables, params, optimizer_state, batch)
        seen.append((loss, auxiliary))
    loss, auxiliary = seen[0]
    return Hypergradient(None, None, params, optimizer_state, loss, auxiliary)


def _average(average: Params | None, params: Params, decay: float) -> Params | None:
    """Polyak averaging; None stays None."""
    return None if average is None else _average_with(average, decay, params)


def _average_with(average: Params | None, decay: float, new: Params) -> Params:
    """The moving average with what is new; without an average that itself."""
    return new if average is None else optax.incremental_update(new, average, 1.0 - decay)
