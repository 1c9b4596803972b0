from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from utilgen_jax.bilevel.hypergradients import ESTIMATORS, Bilevel, finite_difference, implicit, inner_step, unrolled

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.05, 2, 20)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05, eps_root=1e-8),
    "adamw, schedule, clipped": optax.chain(
        optax.clip_by_global_norm(0.05), optax.adamw(SCHEDULE, eps_root=1e-8, weight_decay=0.1)
    ),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model(params, inputs):
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def inner_loss(params, outer, batch):
    """A weighted regression; weights depend on the losses themselves and on an input, the second term on ψ directly."""
    inputs, targets = batch
    losses = jnp.sum((model(params, inputs) - targets) ** 2, -1)
    weights = jax.nn.sigmoid(outer["slope"] * losses + outer["input"] * inputs[:, 0] + outer["bias"])
    return jnp.mean(weights * losses) + jnp.exp(outer["decay"]) * optax.tree.norm(params, squared=True), losses


def outer_loss(params, outer, validation):
    inputs, targets = validation
    # The second term: ψ may enter the outer loss without passing through θ'.
    return jnp.mean((model(params, inputs) - targets) ** 2) + 0.1 * optax.tree.norm(outer, squared=True)


@cache
def problem_data(steps):
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(3, 4)), "out": rng.normal(size=(4, 2))}
    outer = {"slope": -0.3, "input": 0.5, "bias": 0.2, "decay": -2.0}
    batches = rng.normal(size=(steps, 8, 3)), rng.normal(size=(steps, 8, 2))
    validation = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    return params, outer, batches, validation


def start(name, steps):
    """A problem whose optimiser has gone some steps, so that its moments and its schedule are not at zero."""
    params, outer, batches, validation = jax.tree.map(jnp.asarray, problem_data(steps))
    problem = Bilevel(inner_loss, outer_loss, OPTIMIZERS[name])
    state = problem.optimizer.init(params)
    for _ in range(3):
        params, state, _, _ = inner_step(problem, outer, params, state, jax.tree.map(lambda leaf: leaf[0], batches))
    return problem, outer, params, state, batches, validation


def after_plain_steps(problem, outer, params, state, batches, validation):
    """The outer loss after the inner steps, with nothing differentiated through anything."""
    for index in range(len(batches[0])):
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
        gradient = jax.grad(lambda params, batch=batch: inner_loss(params, outer, batch)[0])(params)
        updates, state = problem.optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return outer_loss(params, outer, validation), params


def central_differences(function, point, size=2e-5):
    flat, unravel = jax.flatten_util.ravel_pytree(point)
    value = jax.jit(lambda flat: function(unravel(flat)))
    return np.array([(value(flat + size * one) - value(flat - size * one)) / (2 * size) for one in np.eye(len(flat))])


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("steps", "loop"), [(1, None), (3, True), (3, False)])
def test_unrolled_is_what_central_differences_say(name, steps, loop):
    problem, outer, *rest = start(name, steps)
    expected = central_differences(lambda outer: after_plain_steps(problem, outer, *rest)[0], outer)
    found = jax.jit(partial(unrolled, problem, loop=loop))(outer, *rest)
    assert np.linalg.norm(expected) > 1e-3
    np.testing.assert_allclose(flat(found.gradient), expected, rtol=0, atol=1e-6 * np.linalg.norm(expected))
    loss, params = after_plain_steps(problem, outer, *rest)
    np.testing.assert_allclose(found.outer_loss, loss, rtol=1e-12)
    np.testing.assert_allclose(flat(found.params), flat(params), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finite_difference_approaches_unrolled_by_the_square_of_epsilon(name):
    arguments = start(name, 1)
    exact = flat(unrolled(*arguments).gradient)
    found = {size: finite_difference(*arguments, epsilon=size) for size in (1e-1, 1e-2, 1e-3)}
    errors = {size: np.linalg.norm(flat(value.gradient) - exact) for size, value in found.items()}
    assert errors[1e-3] < 1e-5 * np.linalg.norm(exact)
    assert errors[1e-2] == pytest.approx(errors[1e-1] / 100, rel=0.2)
    np.testing.assert_allclose(flat(found[1e-2].params), flat(unrolled(*arguments).params), rtol=1e-12)


def ridge(rate):
    """Ridge regression whose penalty is ψ: the optimum and its hypergradient have closed forms."""
    rng = np.random.default_rng(1)
    inputs, targets, seen, seen_targets = (jnp.asarray(rng.normal(size=size)) for size in ((16, 5), 16, (8, 5), 8))
    problem = Bilevel(
        lambda params, outer, batch: (
            jnp.mean((batch[0] @ params - batch[1]) ** 2) / 2 + jnp.exp(outer) * jnp.sum(params**2) / 2,
            None,
        ),
        lambda params, outer, validation: jnp.mean((validation[0] @ params - validation[1]) ** 2) / 2,
        optax.sgd(rate),
    )
    outer = jnp.asarray(-1.0)
    hessian = inputs.T @ inputs / 16 + jnp.exp(outer) * jnp.eye(5)
    optimum = jnp.linalg.solve(hessian, inputs.T @ targets / 16)
    along = seen.T @ (seen @ optimum - seen_targets) / 8
    # dθ*/dψ = -H⁻¹ exp(ψ) θ*
    expected = -along @ jnp.linalg.solve(hessian, jnp.exp(outer) * optimum)
    return problem, outer, optimum, (inputs[None], targets[None]), (seen, seen_targets), hessian, expected


@pytest.mark.slow
def test_implicit_is_the_closed_form_at_the_optimum():
    problem, outer, optimum, batches, validation, _, expected = ridge(0.1)
    state = problem.optimizer.init(optimum)
    found = implicit(problem, outer, optimum, state, batches, validation, num_terms=300, step_size=0.3)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-9)
    np.testing.assert_allclose(found.params, optimum, atol=1e-12)


def test_implicit_with_few_terms_and_damping_is_the_truncated_series():
    problem, outer, optimum, batches, validation, hessian, _ = ridge(0.1)
    found = implicit(
        *(problem, outer, optimum, problem.optimizer.init(optimum), batches, validation),
        num_terms=4,
        step_size=0.2,
        damping=0.5,
    )
    seen, seen_targets = validation
    along = seen.T @ (seen @ optimum - seen_targets) / 8
    shrink = np.eye(5) - 0.2 * (hessian + 0.5 * np.eye(5))
    series = sum(np.linalg.matrix_power(shrink, power) for power in range(4)) * 0.2
    np.testing.assert_allclose(found.gradient, -along @ series @ (jnp.exp(outer) * optimum), rtol=1e-10)


def test_many_unrolled_steps_from_the_optimum_are_the_implicit_gradient():
    problem, outer, optimum, batches, validation, _, expected = ridge(0.3)
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, 300, 0), batches)
    found = unrolled(problem, outer, optimum, problem.optimizer.init(optimum), many, validation, loop=True)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_all_take_the_same_arguments_and_the_same_inner_step(name):
    problem, outer, *rest = start("momentum", 1)
    found = ESTIMATORS[name](problem, outer, *rest)
    loss, params = after_plain_steps(problem, outer, *rest)
    np.testing.assert_allclose(flat(found.params), flat(params), rtol=1e-10)
    np.testing.assert_allclose(found.outer_loss, loss, rtol=1e-10)
    batch = jax.tree.map(lambda leaf: leaf[0], rest[2])
    expected_loss, losses = inner_loss(rest[0], outer, batch)
    np.testing.assert_allclose(found.inner_loss, expected_loss, rtol=1e-10)
    np.testing.assert_allclose(found.auxiliary, losses, rtol=1e-10)
    assert jax.tree.structure(found.gradient) == jax.tree.structure(outer)


@pytest.mark.parametrize("name", ["finite_difference", "implicit"])
def test_one_step_is_what_these_look_through(name):
    with pytest.raises(ValueError, match=f"{name} looks through one inner step; batches have 3"):
        ESTIMATORS[name](*start("sgd", 3))


def test_batches_agree_on_the_number_of_steps():
    problem, outer, params, state, (inputs, targets), validation = start("sgd", 3)
    with pytest.raises(ValueError, match=r"leaves have \[2, 3\]"):
        unrolled(problem, outer, params, state, (inputs, targets[:2]), validation)
