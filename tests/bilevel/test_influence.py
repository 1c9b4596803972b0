import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import cross_entropies, influence

OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw, clipped": optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(0.05, eps_root=1e-8)),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def apply(params, inputs):
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def draw(rng, number):
    inputs = jnp.asarray(rng.normal(size=(number, 4)))
    return Examples(inputs, jax.nn.one_hot(rng.integers(3, size=number), 3, dtype=inputs.dtype))


def prepare(optimizer):
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.asarray, {"in": rng.normal(size=(4, 5)), "out": rng.normal(size=(5, 3))})
    examples, validation = draw(rng, 6), draw(rng, 5)
    state = optimizer.init(params)
    for _ in range(2):
        gradient = jax.grad(lambda params: jnp.mean(cross_entropies(apply, params, examples)))(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, examples, validation


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_matrix_is_the_gradient_of_weights_and_of_labels(name):
    optimizer = OPTIMIZERS[name]
    params, state, examples, validation = prepare(optimizer)
    weights = jnp.linspace(0.5, 1.5, 6)
    found = influence(apply, optimizer, params, state, examples, validation, weights)

    @jax.jit
    def after_step(weights, targets):
        def loss(params):
            return jnp.mean(weights * optax.softmax_cross_entropy(apply(params, examples.inputs), targets))

        updates, _ = optimizer.update(jax.grad(loss)(params), state, params)
        return jnp.mean(cross_entropies(apply, optax.apply_updates(params, updates), validation))

    def differences(function, point, size=1e-5):
        ones = np.eye(point.size).reshape(-1, *point.shape)
        values = [(function(point + size * one) - function(point - size * one)) / (2 * size) for one in ones]
        return np.reshape(values, point.shape)

    np.testing.assert_allclose(found.validation_loss, after_step(weights, examples.targets), rtol=1e-12)
    by_weight = differences(lambda weights: after_step(weights, examples.targets), weights)
    np.testing.assert_allclose(-np.sum(examples.targets * found.matrix, -1) / 6, by_weight, rtol=1e-5, atol=1e-9)
    by_label = differences(lambda targets: after_step(weights, targets), examples.targets)
    np.testing.assert_allclose(-weights[:, None] * found.matrix / 6, by_label, rtol=1e-5, atol=1e-9)
    # The prediction's own mean: no label is better on average, so the best one is never worse than nothing.
    np.testing.assert_allclose(np.sum(jax.nn.softmax(found.logits) * found.matrix, -1), 0.0, atol=1e-12)
