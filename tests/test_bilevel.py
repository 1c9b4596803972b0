from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from utilgen_jax.bilevel import init_bilevel, make_bilevel_update
from utilgen_jax.classification import Recipe, make_optimizer

RECIPE = Recipe(
    steps=20,
    batch_size=8,
    synthetic_fraction=0.5,
    learning_rate=0.05,
    weight_decay=0.1,
    label_smoothing=0.0,
    max_shift=0,
)
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.05, 2, 20)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05, eps_root=1e-8),
    "adamw, schedule, clipped": optax.chain(
        optax.clip_by_global_norm(0.05), optax.adamw(SCHEDULE, eps_root=1e-8, weight_decay=0.1)
    ),
    "the classifier's": make_optimizer(RECIPE),
}
BATCH_SIZE = 8


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed=0):
    """A network of one hidden layer, and a weighting that has one too: (params, weight params, batch, validation)."""
    rng = np.random.default_rng(seed)
    params = {"in": rng.normal(size=(3, 4)), "bias": rng.normal(size=4), "out": rng.normal(size=(4, 3))}
    weight_params = {"in": rng.normal(size=(1, 3)), "bias": rng.normal(size=3), "out": rng.normal(size=(3, 1))}
    batch, validation = ((rng.normal(size=(n, 3)), rng.integers(3, size=n)) for n in (BATCH_SIZE, 5))
    return jax.tree.map(jnp.asarray, (params, weight_params, batch, validation))


def log_probabilities(params, inputs):
    return jax.nn.log_softmax(jnp.tanh(inputs @ params["in"] + params["bias"]) @ params["out"])


def sample_losses(params, batch):
    inputs, labels = batch
    return -log_probabilities(params, inputs)[jnp.arange(len(labels)), labels]


def sample_weights(weight_params, losses, batch):
    del batch
    hidden = jnp.tanh(losses[:, None] @ weight_params["in"] + weight_params["bias"])
    return jax.nn.sigmoid(hidden @ weight_params["out"])[:, 0]


def free_weights(weight_params, losses, batch):
    """One free weight a sample: the outer gradient is then the hypergradient of the weights."""
    del losses, batch
    return weight_params


def validation_loss(params, validation):
    return jnp.mean(sample_losses(params, validation))


@cache
def make_update(optimizer, weights=sample_weights):
    """By SGD of rate 1, old minus new weight parameters are the outer gradient. Cached, so that it compiles once."""
    return jax.jit(make_bilevel_update(sample_losses, weights, validation_loss, optimizer, optax.sgd(1.0)))


def trained_state(optimizer, weights=sample_weights, weight_params=None):
    """A state whose optimiser has gone some steps, so that its moments and its schedule are not at zero."""
    params, initial, batch, validation = problem()
    weight_params = initial if weight_params is None else weight_params
    state = init_bilevel(params, weight_params, optimizer, optax.sgd(1.0))
    for _ in range(3):
        state, _ = make_update(optimizer, weights)(state, batch, validation)
        state = state.replace(weight_params=weight_params)
    return state, batch, validation


def classifier_step(optimizer, state, batch, weights):
    """The step of the classifier for weights that are numbers: no outer level, nothing differentiated through it."""
    gradients = jax.grad(lambda params: jnp.mean(weights * sample_losses(params, batch)))(state.params)
    updates, _ = optimizer.update(gradients, state.optimizer_state, state.params)
    return optax.apply_updates(state.params, updates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_outer_gradient_is_that_of_central_differences(name):
    optimizer = OPTIMIZERS[name]
    state, batch, validation = trained_state(optimizer)
    flat, unravel = jax.flatten_util.ravel_pytree(state.weight_params)
    losses = sample_losses(state.params, batch)

    @jax.jit
    def value(flat):
        weights = sample_weights(unravel(flat), losses, batch)
        return validation_loss(classifier_step(optimizer, state, batch, weights), validation)

    size = 1e-4
    differences = [value(flat + size * one) - value(flat - size * one) for one in np.eye(len(flat))]
    expected = np.array(differences) / (2 * size)

    new, metrics = make_update(optimizer)(state, batch, validation)
    found = flat - jax.flatten_util.ravel_pytree(new.weight_params)[0]
    assert np.linalg.norm(expected) > 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.linalg.norm(expected))
    np.testing.assert_allclose(metrics.validation_loss, value(flat), rtol=1e-12)


def test_closed_form_of_a_quadratic():
    # l_i = |θ - x_i|²/2 and one step of SGD: θ' = θ - η/B Σ w_i (θ - x_i), dL/dw_i = -η/B (θ' - v)·(θ - x_i).
    rng = np.random.default_rng(0)
    start, points, target, weights = (
        rng.normal(size=3),
        rng.normal(size=(5, 3)),
        rng.normal(size=3),
        rng.uniform(size=5),
    )
    rate = 0.7
    optimizer, weight_optimizer = optax.sgd(rate), optax.sgd(1.0)
    update = make_bilevel_update(
        lambda params, batch: jnp.sum((params - batch) ** 2, -1) / 2,
        free_weights,
        lambda params, validation: jnp.sum((params - validation) ** 2) / 2,
        optimizer,
        weight_optimizer,
    )
    state = init_bilevel(jnp.array(start), jnp.array(weights), optimizer, weight_optimizer)
    new, metrics = update(state, jnp.array(points), jnp.array(target))

    losses = ((start - points) ** 2).sum(-1) / 2
    moved = start - rate * (weights[:, None] * (start - points)).mean(0)
    np.testing.assert_allclose(new.params, moved, rtol=1e-12)
    np.testing.assert_allclose(weights - new.weight_params, -rate / 5 * (start - points) @ (moved - target), rtol=1e-10)
    np.testing.assert_allclose(metrics.losses, losses, rtol=1e-12)
    np.testing.assert_allclose(metrics.weights, weights)
    np.testing.assert_allclose(metrics.train_loss, (weights * losses).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.validation_loss, ((moved - target) ** 2).sum() / 2, rtol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "the classifier's"])
def test_more_weight_on_a_sample_of_positive_influence_lowers_the_validation_loss(name):
    optimizer = OPTIMIZERS[name]
    weights = jnp.linspace(0.3, 0.9, BATCH_SIZE)
    state, batch, validation = trained_state(optimizer, free_weights, weights)

    # The influence matrix: q = (dθ'/dg)ᵀ ∇L_val(θ'), Π = the JVP of the log-probabilities along q.
    gradients = jax.grad(lambda params: jnp.mean(weights * sample_losses(params, batch)))(state.params)
    moved, pull_back = jax.vjp(
        lambda g: optax.apply_updates(state.params, optimizer.update(g, state.optimizer_state, state.params)[0]),
        gradients,
    )
    (direction,) = pull_back(jax.grad(validation_loss)(moved, validation))
    inputs, labels = batch
    matrix = jax.jvp(lambda params: log_probabilities(params, inputs), (state.params,), (direction,))[1]
    influence = np.asarray(matrix[jnp.arange(BATCH_SIZE), labels])

    new, metrics = make_update(optimizer, free_weights)(state, batch, validation)
    np.testing.assert_allclose(weights - new.weight_params, -influence / BATCH_SIZE, rtol=1e-8)

    assert (influence > 0).any() and (influence < 0).any()
    for sample, value in enumerate(influence):
        heavier = classifier_step(optimizer, state, batch, weights.at[sample].add(1e-3))
        change = validation_loss(heavier, validation) - metrics.validation_loss
        assert np.sign(change) == -np.sign(value), (sample, value, change)


def test_no_gradient_reaches_the_classifier_through_the_weights():
    optimizer = OPTIMIZERS["sgd"]
    state, batch, validation = trained_state(optimizer)
    new, _ = make_update(optimizer)(state, batch, validation)

    weights = sample_weights(state.weight_params, sample_losses(state.params, batch), batch)
    expected = classifier_step(optimizer, state, batch, weights)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-10), new.params, expected)

    def leaking(params):
        losses = sample_losses(params, batch)
        return jnp.mean(sample_weights(state.weight_params, losses, batch) * losses)

    # The other gradient is another one: without detaching, the classifier would learn to please the weighting.
    leak = jax.grad(leaking)(state.params)["out"]
    assert np.abs(np.asarray(state.params["out"] - new.params["out"]) / 0.1 - leak).max() > 1e-3


def test_the_weighting_takes_its_own_optimisers_step():
    optimizer, weight_optimizer = OPTIMIZERS["sgd"], optax.adam(0.01)
    state, batch, validation = trained_state(optimizer)
    by_sgd, _ = make_update(optimizer)(state, batch, validation)
    gradient = jax.tree.map(jnp.subtract, state.weight_params, by_sgd.weight_params)

    initial = weight_optimizer.init(state.weight_params)
    update = jax.jit(make_bilevel_update(sample_losses, sample_weights, validation_loss, optimizer, weight_optimizer))
    new, _ = update(state.replace(weight_optimizer_state=initial), batch, validation)
    updates, expected_state = weight_optimizer.update(gradient, initial)
    expected = optax.apply_updates(state.weight_params, updates), expected_state
    found = new.weight_params, new.weight_optimizer_state
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("optimizer", "finite"),
    [(optax.adam(0.1, eps_root=1e-8), True), (make_optimizer(RECIPE), True), (optax.adam(0.1), False)],
)
def test_parameters_whose_gradient_is_zero_need_eps_root(optimizer, finite):
    # As a LoRA at its start: the second factor is zero, so the gradient of the first is exactly zero.
    params, weight_params, batch, validation = problem()
    params |= {"down": jnp.ones((3, 2)), "up": jnp.zeros((2, 4))}

    def losses(params, batch):
        return sample_losses(params | {"in": params["in"] + params["down"] @ params["up"]}, batch)

    update = make_bilevel_update(
        losses, sample_weights, lambda params, batch: jnp.mean(losses(params, batch)), optimizer, optax.sgd(1.0)
    )
    state = init_bilevel(params, weight_params, optimizer, optax.sgd(1.0))
    new, _ = jax.jit(update)(state, batch, validation)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.weight_params)) == finite


def test_it_compiles_once_and_works_on_donated_buffers():
    traces = []

    def counted(params, batch):
        traces.append(None)
        return sample_losses(params, batch)

    optimizer, weight_optimizer = OPTIMIZERS["adam"], optax.adam(0.01)
    update = make_bilevel_update(counted, sample_weights, validation_loss, optimizer, weight_optimizer)
    params, weight_params, batch, validation = problem()
    start = init_bilevel(params, weight_params, optimizer, weight_optimizer)

    kept = donated = start
    step, in_place = jax.jit(update), jax.jit(update, donate_argnums=0)
    donated = jax.tree.map(jnp.copy, start)
    for number in range(5):
        kept, _ = step(kept, batch, validation)
        before, (donated, _) = donated, in_place(donated, batch, validation)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        if number == 0:
            first = len(traces)
    assert len(traces) == first
    jax.tree.map(np.testing.assert_array_equal, kept, donated)
