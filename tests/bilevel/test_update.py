import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from utilgen_jax.bilevel import check_finite, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples, concatenate
from utilgen_jax.bilevel.hypergradients import ESTIMATORS
from utilgen_jax.bilevel.weightings import (
    Weighting,
    WeightingInputs,
    feature_network,
    loss_network,
    relative_weights,
    saflex,
    uniform,
)
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.train import make_optimizer

CONFIG = ClassifierConfig(
    steps=20,
    batch_size=8,
    synthetic_fraction=0.5,
    learning_rate=0.05,
    weight_decay=0.1,
    label_smoothing=0.0,
    max_shift=0,
)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "nesterov, clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "the classifier's": make_optimizer(CONFIG),
}
NUM_CLASSES, WIDTH = 3, 4
# One free weight an example: the outer gradient is then the hypergradient of the weights themselves.
FREE = Weighting(
    init=lambda key: jnp.ones(8), apply=lambda params, weighting_inputs: (params, weighting_inputs.examples.targets)
)
NETWORK = loss_network(5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def apply(params, inputs):
    return jnp.tanh(inputs @ params["in"] + params["bias"]) @ params["out"]


def generate(adapter, sample_inputs):
    """Stands for a generator: noise and label to inputs, through parameters."""
    noise, labels = sample_inputs
    inputs = jnp.tanh(noise @ adapter["mix"]) + adapter["means"][labels]
    return Examples(inputs, jax.nn.one_hot(labels, NUM_CLASSES, dtype=inputs.dtype))


def draw(rng, *shape):
    inputs = jnp.asarray(rng.normal(size=(*shape, WIDTH)))
    targets = jax.nn.one_hot(rng.integers(NUM_CLASSES, size=shape), NUM_CLASSES, dtype=inputs.dtype)
    return Examples(inputs, targets)


@cache
def domain():
    """Parameters of both levels, a batch of 8, 6 sample inputs, and 5 validation examples."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"in": rng.normal(size=(WIDTH, 6)), "bias": rng.normal(size=6), "out": rng.normal(size=(6, 3))}
        adapter = {"mix": rng.normal(size=(2, WIDTH)), "means": rng.normal(size=(NUM_CLASSES, WIDTH))}
        weighting = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape), jax.eval_shape(NETWORK.init, jax.random.key(0))
        )
        sample_inputs = jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(rng.integers(NUM_CLASSES, size=6))
        return SimpleNamespace(
            params=jax.tree.map(jnp.asarray, params),
            outer=jax.tree.map(jnp.asarray, {"weighting": weighting, "adapter": adapter}),
            examples=draw(rng, 8),
            validation=draw(rng, 5),
            sample_inputs=sample_inputs,
        )


def moved_state(optimizer, outer, outer_optimizer=None):
    """A state whose classifier has gone some steps, so that moments and schedule are not at zero."""
    it = domain()
    outer_optimizer = outer_optimizer or optax.sgd(1.0)  # old minus new is then the outer gradient
    state = init_bilevel(it.params, optimizer, outer, outer_optimizer)
    update = jax.jit(make_bilevel_update(apply, uniform(), optimizer, outer_optimizer))
    for _ in range(3):
        state, _ = update(state, it.examples)
    return state


@partial(jax.jit, static_argnums=0)
def step_with(optimizer, state, examples, weights, targets=None):
    """The classifier after a step with weights that are numbers: nothing is differentiated through anything."""
    targets = examples.targets if targets is None else targets

    def loss(params):
        return jnp.mean(weights * optax.softmax_cross_entropy(apply(params, examples.inputs), targets))

    updates, _ = optimizer.update(jax.grad(loss)(state.params), state.optimizer_state, state.params)
    return optax.apply_updates(state.params, updates)


def validation_loss(params):
    it = domain()
    return jnp.mean(optax.softmax_cross_entropy(apply(params, it.validation.inputs), it.validation.targets))


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def assert_close(found, expected, rtol=1e-9):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-12), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_to_weighting_and_adapter_is_that_of_central_differences(name):
    # Real examples of weight 1, generated ones weighed by a network that sees their losses as they are at first.
    optimizer, it = OPTIMIZERS[name], domain()
    real = dataclasses.replace(it.examples, is_weighted=jnp.zeros(8, bool))
    state = moved_state(optimizer, it.outer)
    before = generate(it.outer["adapter"], it.sample_inputs)
    losses = optax.softmax_cross_entropy(apply(state.params, before.inputs), before.targets)
    vector, unravel = jax.flatten_util.ravel_pytree(it.outer)

    @jax.jit
    def value(vector):
        outer = unravel(vector)
        generated = generate(outer["adapter"], it.sample_inputs)
        hidden = jax.nn.relu(
            losses[:, None] @ outer["weighting"]["hidden"]["kernel"] + outer["weighting"]["hidden"]["bias"]
        )
        raw = jax.nn.sigmoid(hidden @ outer["weighting"]["output"]["kernel"] + outer["weighting"]["output"]["bias"])[
            :, 0
        ]
        weights = jnp.concatenate([jnp.ones(8), raw / raw.mean()])
        return validation_loss(step_with(optimizer, state, concatenate(real, generated), weights))

    size = 2e-5
    differences = [value(vector + size * one) - value(vector - size * one) for one in np.eye(len(vector))]
    expected = np.array(differences) / (2 * size)

    update = make_bilevel_update(apply, NETWORK, optimizer, optax.sgd(1.0), generate=generate)
    new, metrics = jax.jit(update)(state, real, it.validation, it.sample_inputs)
    found = vector - flat(new.outer)
    for part in (slice(0, 20), slice(20, None)):  # adapter, weighting
        assert np.linalg.norm(expected[part]) > 1e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.linalg.norm(expected))
    np.testing.assert_allclose(metrics.validation_loss, value(vector), rtol=1e-12)
    np.testing.assert_allclose(metrics.losses[8:], losses, rtol=1e-12)
    np.testing.assert_array_equal(metrics.weights[:8], np.ones(8))
    np.testing.assert_allclose(np.mean(metrics.weights[8:]), 1.0)
    assert new.step == state.step + 1


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 2])
def test_a_regularizer_adds_its_gradient_in_the_adapter_and_through_the_images(num_inner_steps):
    it, optimizer = domain(), OPTIMIZERS["sgd"]
    sample_inputs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), it.sample_inputs)
    examples, validation = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), it.examples), it.validation
    if num_inner_steps == 1:
        sample_inputs, examples = it.sample_inputs, it.examples
    flat_inputs = jax.tree.map(lambda leaf, one: leaf.reshape(-1, *one.shape[1:]), sample_inputs, it.sample_inputs)

    def regularizer(images, adapter, params, given):
        assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, flat_inputs)
        return jnp.mean(images**3) + jnp.sum(jax.flatten_util.ravel_pytree(adapter)[0] ** 2) * optax.tree.norm(params)

    state = moved_state(optimizer, it.outer)

    def step(**changes):
        update = make_bilevel_update(
            apply, NETWORK, optimizer, optax.sgd(1.0), generate=generate, num_inner_steps=num_inner_steps, **changes
        )
        return jax.jit(update)(state, examples, validation, sample_inputs)

    (plain, without), (regularized, metrics) = step(), step(regularizer=regularizer)
    found = flat(plain.outer["adapter"]) - flat(regularized.outer["adapter"])

    vector, unravel = jax.flatten_util.ravel_pytree(it.outer["adapter"])

    @jax.jit
    def value(vector):
        adapter = unravel(vector)
        return regularizer(generate(adapter, flat_inputs).inputs, adapter, state.params, flat_inputs)

    size = 1e-5
    expected = [(value(vector + size * one) - value(vector - size * one)) / (2 * size) for one in np.eye(len(vector))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics.penalty, value(vector), rtol=1e-9)
    assert without.penalty is None
    # The weighting, and the classifier's own step, know nothing of it.
    assert_close(regularized.outer["weighting"], plain.outer["weighting"])
    assert_close(regularized.params, plain.params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_more_weight_on_an_example_of_positive_utility_lowers_the_validation_loss(name):
    optimizer, it = OPTIMIZERS[name], domain()
    state = moved_state(optimizer, {})
    update = make_bilevel_update(apply, uniform(), optimizer, optax.sgd(1.0))
    new, metrics = jax.jit(update)(state, it.examples, it.validation)
    assert_close(new.params, step_with(optimizer, state, it.examples, jnp.ones(8)))
    assert (metrics.utilities > 0).any() and (metrics.utilities < 0).any()

    @jax.jit
    def change(weight_perturbations):
        return (
            validation_loss(step_with(optimizer, state, it.examples, jnp.ones(8) + weight_perturbations))
            - metrics.validation_loss
        )

    for one, utility in zip(np.eye(8), metrics.utilities, strict=True):
        assert np.sign(change(1e-3 * one)) == -np.sign(utility)
        np.testing.assert_allclose(
            (change(1e-4 * one) - change(-1e-4 * one)) / 2e-4, -utility / 8, rtol=1e-4, atol=1e-9
        )


def test_no_gradient_reaches_the_classifier_through_the_weights():
    optimizer, it = OPTIMIZERS["sgd"], domain()
    state = moved_state(optimizer, {"weighting": it.outer["weighting"]})
    update = make_bilevel_update(apply, NETWORK, optimizer, optax.sgd(1.0))
    new, metrics = jax.jit(update)(state, it.examples, it.validation)
    assert_close(new.params, step_with(optimizer, state, it.examples, metrics.weights))

    @jax.jit
    def leaking(params):
        logits = apply(params, it.examples.inputs)
        raw, _ = NETWORK.apply(state.outer["weighting"], WeightingInputs(it.examples, logits))
        losses = optax.softmax_cross_entropy(logits, it.examples.targets)
        return jnp.mean(relative_weights(raw, it.examples.weighted) * losses)

    leak = jax.jit(jax.grad(leaking))(state.params)["out"]
    assert np.abs(np.asarray(state.params["out"] - new.params["out"]) / 0.1 - leak).max() > 1e-3


def test_without_validation_the_outer_level_stays():
    optimizer, it = OPTIMIZERS["the classifier's"], domain()
    state = moved_state(optimizer, it.outer)
    update = make_bilevel_update(apply, NETWORK, optimizer, optax.adam(0.1), generate=generate)
    new, metrics = jax.jit(update)(state, it.examples, None, it.sample_inputs)
    assert_close(new.outer, state.outer, rtol=0)
    assert metrics.validation_loss is None and metrics.utilities is None
    everything = concatenate(it.examples, generate(it.outer["adapter"], it.sample_inputs))
    assert_close(new.params, step_with(optimizer, state, everything, metrics.weights))
    # Both sorts are weighed here, the given and the generated.
    assert metrics.weights.shape == (14,) and np.ptp(metrics.weights[:8]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_reaches_weights_and_adapter(name):
    # At a small step, one step of lookahead and the series' first term are the same up to the optimiser's rate.
    options = {"implicit": {"num_terms": 1, "step_size": 1e-3}, "finite_difference": {"epsilon": 1e-4}}
    optimizer, it = optax.sgd(1e-3), domain()
    state = moved_state(optimizer, it.outer)
    new = {}
    for estimator in ("unrolled", name):
        update = make_bilevel_update(
            *(apply, NETWORK, optimizer, optax.sgd(1.0)),
            generate=generate,
            estimator=partial(ESTIMATORS[estimator], **options.get(estimator, {})),
        )
        new[estimator], _ = jax.jit(update)(state, it.examples, it.validation, it.sample_inputs)
    exact, found = (flat(state.outer) - flat(new[each].outer) for each in ("unrolled", name))
    np.testing.assert_allclose(found, exact, atol=0.01 * np.abs(exact).max())
    assert np.abs(exact[:20]).max() > 1e-6


@pytest.mark.slow
def test_microbatches_change_nothing():
    optimizer, it = OPTIMIZERS["nesterov, clipped"], domain()
    state = moved_state(optimizer, it.outer)
    sample_inputs = jax.tree.map(lambda leaf: leaf[:4], it.sample_inputs)
    results = {}
    for number in (1, 3):
        update = make_bilevel_update(
            apply, NETWORK, optimizer, optax.sgd(0.1), generate=generate, num_microbatches=number
        )
        results[number] = jax.jit(update)(state, it.examples, it.validation, sample_inputs)
    assert_close(results[3], results[1])
    with pytest.raises(ValueError, match="a batch of 14 does not divide into 3 microbatches"):
        update(state, it.examples, it.validation, it.sample_inputs)


@pytest.mark.slow
def test_several_inner_steps_are_looked_through_together():
    optimizer, it = OPTIMIZERS["nesterov, clipped"], domain()
    state = moved_state(optimizer, it.outer)
    rng = np.random.default_rng(3)
    examples = draw(rng, 2, 4)
    sample_inputs = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), it.sample_inputs)
    outer_optimizer = optax.sgd(1.0)
    update = make_bilevel_update(apply, NETWORK, optimizer, outer_optimizer, generate=generate, num_inner_steps=2)
    new, metrics = jax.jit(update)(state, examples, it.validation, sample_inputs)
    assert new.step == state.step + 2 and metrics.losses.shape == (7,)

    single = make_bilevel_update(apply, NETWORK, optimizer, outer_optimizer, generate=generate)

    @jax.jit
    def value(outer):
        one = dataclasses.replace(state, outer=outer)
        for index in range(2):
            batch, requested = jax.tree.map(lambda leaf, index=index: leaf[index], (examples, sample_inputs))
            one, _ = single(one, batch, None, requested)
        return validation_loss(one.params), one.params

    loss, params = value(state.outer)
    np.testing.assert_allclose(metrics.validation_loss, loss, rtol=1e-10)
    assert_close(new.params, params)
    # Forwards through both steps, where the update goes backwards: but for the detached losses the same.
    assert_close(
        jax.tree.map(jnp.subtract, state.outer, new.outer),
        jax.jit(jax.grad(lambda outer: value(outer)[0]))(state.outer),
    )

    plain, _ = jax.jit(update)(state, examples, None, sample_inputs)
    assert_close(plain.params, params)
    with pytest.raises(ValueError, match="num_inner_steps must be 1"):
        make_bilevel_update(apply, saflex(), optimizer, outer_optimizer, num_inner_steps=2)


def test_the_average_follows_the_parameters():
    it, optimizer = domain(), OPTIMIZERS["sgd"]
    state = init_bilevel(it.params, optimizer, {}, optax.sgd(1.0), ema_decay=0.7)
    update = make_bilevel_update(apply, uniform(), optimizer, optax.sgd(1.0))
    first, _ = update(state, it.examples)
    second, _ = update(first, it.examples)
    expected = jax.tree.map(
        lambda zero, one, two: 0.49 * zero + 0.21 * one + 0.3 * two, it.params, first.params, second.params
    )
    assert_close(second.ema_params, expected)


def test_influence_can_be_taken_on_the_average_gradient_of_the_validation_loss():
    it, optimizer, ones = domain(), OPTIMIZERS["sgd"], jnp.ones(8)
    state = init_bilevel(it.params, optimizer, {}, optax.sgd(1.0), validation_decay=0.8)
    update = jax.jit(make_bilevel_update(apply, saflex(), optimizer, optax.sgd(1.0)))
    first, _ = update(state, it.examples, it.validation)
    second, metrics = update(first, it.examples, it.validation)
    gradients = [
        jax.grad(validation_loss)(step_with(optimizer, before, it.examples, ones)) for before in (state, first)
    ]
    average = jax.tree.map(lambda one, two: 0.8 * 0.2 * one + 0.2 * two, *gradients)
    assert_close(second.validation_gradient, average)
    along = jax.grad(lambda weights: flat_product(average, step_with(optimizer, first, it.examples, weights)))(ones)
    np.testing.assert_allclose(metrics.utilities, -8 * along, rtol=1e-9)
    plain, _ = update(second, it.examples)
    assert_close(plain.validation_gradient, average)


def flat_product(one, other):
    return sum(jnp.sum(leaf * own) for leaf, own in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
def test_saflex_takes_the_step_with_its_weights_and_soft_labels():
    optimizer, it = OPTIMIZERS["nesterov, clipped"], domain()
    state = moved_state(optimizer, {})
    weighting = saflex(temperature=0.7)
    update = make_bilevel_update(apply, weighting, optimizer, optax.sgd(1.0))
    new, metrics = jax.jit(update)(state, it.examples, it.validation)

    plain, at_uniform = make_bilevel_update(apply, uniform(), optimizer, optax.sgd(1.0))(
        state, it.examples, it.validation
    )
    np.testing.assert_allclose(metrics.utilities, at_uniform.utilities, rtol=1e-8)
    np.testing.assert_allclose(metrics.validation_loss, at_uniform.validation_loss, rtol=1e-10)
    # Π by its definition: the hypergradient of free targets, one differentiation each.

    def loss_of(targets):
        return validation_loss(step_with(optimizer, state, it.examples, jnp.ones(8), targets))

    matrix = -8 * jax.grad(loss_of)(it.examples.targets)
    weights, targets = weighting.apply(
        {}, WeightingInputs(it.examples, apply(state.params, it.examples.inputs), matrix)
    )
    expected = step_with(optimizer, state, it.examples, relative_weights(weights, jnp.ones(8, bool)), targets)
    assert_close(new.params, expected)
    assert np.abs(flat(new.params) - flat(plain.params)).max() > 1e-3
    # What it is for: the step with its labels does more for the validation loss than the one with the given ones.
    assert validation_loss(new.params) < metrics.validation_loss


def mixed_and_smoothed(inputs, targets):
    """A transform as the classifier's training has one: each example is mixed with the next, labels are smoothed."""
    targets = 0.8 * targets + 0.2 / NUM_CLASSES * targets.sum(-1, keepdims=True)
    return 0.7 * inputs + 0.3 * jnp.roll(inputs, 1, 0), 0.7 * targets + 0.3 * jnp.roll(targets, 1, 0)


@pytest.mark.slow
def test_a_transform_stands_between_the_weighting_and_the_step():
    optimizer, it = OPTIMIZERS["nesterov, clipped"], domain()
    state = moved_state(optimizer, {"weighting": jnp.linspace(0.5, 1.5, 8)})

    def step(weights, targets=it.examples.targets):
        inputs, targets = mixed_and_smoothed(it.examples.inputs, weights[:, None] * targets)
        return step_with(optimizer, state, Examples(inputs, targets), jnp.ones(8))

    update = make_bilevel_update(apply, FREE, optimizer, optax.sgd(1.0), transform=mixed_and_smoothed)
    new, metrics = jax.jit(update)(state, it.examples, it.validation)
    assert_close(new.params, step(metrics.weights))
    np.testing.assert_allclose(metrics.weights, np.linspace(0.5, 1.5, 8), rtol=1e-9)  # of the examples themselves
    expected = jax.grad(lambda weights: validation_loss(step(relative_weights(weights, jnp.ones(8, bool)))))(
        state.outer["weighting"]
    )
    assert_close(state.outer["weighting"] - new.outer["weighting"], expected, rtol=1e-7)

    # The direction of SAFLEX is that of the step on mixed images, the influence that of the images themselves.
    state = moved_state(optimizer, {})
    weighting = saflex()
    update = make_bilevel_update(apply, weighting, optimizer, optax.sgd(1.0), transform=mixed_and_smoothed)
    new, metrics = jax.jit(update)(state, it.examples, it.validation)
    matrix = influence_of_added_images(optimizer, state, it)
    weights, targets = weighting.apply({}, WeightingInputs(it.examples, matrix, matrix))
    np.testing.assert_allclose(metrics.targets, targets, rtol=1e-6)
    assert_close(new.params, step(relative_weights(weights, jnp.ones(8, bool)), targets))


def influence_of_added_images(optimizer, state, it):
    """Π by its definition: what -log p_k(x_i), added to the loss of the mixed batch, does to the validation loss."""
    inputs, targets = mixed_and_smoothed(it.examples.inputs, it.examples.targets)
    inputs = jnp.concatenate([inputs, it.examples.inputs])

    def loss_of(added):
        # The mean is over 8 images as before.
        examples = Examples(inputs, jnp.concatenate([targets, added]))
        return validation_loss(step_with(optimizer, state, examples, 2 * jnp.ones(16)))

    return -8 * jax.grad(loss_of)(jnp.zeros((8, NUM_CLASSES)))


def test_saflex_and_an_adapter_go_together():
    optimizer, it = OPTIMIZERS["sgd"], domain()
    state = moved_state(optimizer, {"adapter": it.outer["adapter"]})
    update = make_bilevel_update(apply, saflex(), optimizer, optax.sgd(0.5), generate=generate)
    new, _ = jax.jit(update)(state, None, it.validation, it.sample_inputs)
    # With weights and labels held, a step of the adapter along the gradient makes the classifier's step better.
    again, _ = jax.jit(update)(dataclasses.replace(state, outer=new.outer), None, it.validation, it.sample_inputs)
    assert validation_loss(again.params) < validation_loss(new.params)


@pytest.mark.parametrize(
    ("optimizer", "finite"),
    [(optax.adam(0.1, eps_root=1e-8), True), (make_optimizer(CONFIG), True), (optax.adam(0.1), False)],
)
def test_parameters_whose_gradient_is_zero_need_eps_root(optimizer, finite):
    # As a LoRA at its start: the second factor is zero, so the gradient of the first is exactly zero.
    it = domain()
    params = it.params | {"down": jnp.ones((WIDTH, 2)), "up": jnp.zeros((2, 6))}

    def with_lora(params, inputs):
        return apply(params | {"in": params["in"] + params["down"] @ params["up"]}, inputs)

    update = make_bilevel_update(with_lora, NETWORK, optimizer, optax.sgd(1.0))
    state = init_bilevel(params, optimizer, {"weighting": it.outer["weighting"]}, optax.sgd(1.0))
    new, _ = jax.jit(update)(state, it.examples, it.validation)
    if finite:
        check_finite(new.first_nonfinite)
    else:
        with pytest.raises(
            FloatingPointError, match="step 0: NaN or infinity in outer gradient, then weighting/hidden"
        ):
            check_finite(new.first_nonfinite)


@pytest.mark.slow
def test_half_precision_logits_are_weighed_in_float32():
    it = domain()

    def half(params, inputs):
        return apply(*jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, inputs)))

    params, outer, examples, validation = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32),
        (it.params, {"weighting": it.outer["weighting"]}, it.examples, it.validation),
    )
    state = init_bilevel(params, OPTIMIZERS["sgd"], outer, optax.sgd(1.0))
    results = [
        jax.jit(make_bilevel_update(function, NETWORK, OPTIMIZERS["sgd"], optax.sgd(1.0)))(state, examples, validation)
        for function in (half, apply)
    ]
    (low, low_metrics), (full, full_metrics) = results
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((low.params, low.outer, low_metrics.weights)))
    np.testing.assert_allclose(low_metrics.validation_loss, full_metrics.validation_loss, rtol=0.02)
    ours, theirs = (flat(outer) - flat(state.outer) for state in (low, full))
    assert 1e-5 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.2


@pytest.mark.slow
def test_fifty_steps_compile_once_with_and_once_without_validation_on_donated_buffers():
    traces = []
    it = domain()

    def counted(params, inputs):
        traces.append(None)
        return apply(params, inputs)

    optimizer, outer_optimizer = OPTIMIZERS["the classifier's"], optax.adam(0.01)
    update = make_bilevel_update(counted, NETWORK, optimizer, outer_optimizer, generate=generate)
    in_place = jax.jit(update, donate_argnums=0)
    state = init_bilevel(
        jax.tree.map(jnp.copy, it.params), optimizer, jax.tree.map(jnp.copy, it.outer), outer_optimizer
    )
    seen, reported = [], []
    for step in range(50):
        before = state
        state, metrics = in_place(state, it.examples, it.validation if step % 5 == 0 else None, it.sample_inputs)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        seen.append(len(traces))
        reported.append(metrics)
    assert seen[1] > seen[0] and set(seen[1:]) == {seen[1]}
    for metrics in reported:  # the state's buffers are gone, the metrics' are not
        check_finite(metrics.first_nonfinite)


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    # In float32: the order of additions differs. Eight examples and sample inputs, one of each a device.
    it = domain()
    sample_inputs = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:2]]), it.sample_inputs)
    validation = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:3]]), it.validation)
    optimizer, outer_optimizer = OPTIMIZERS["nesterov, clipped"], optax.sgd(1.0)
    weighting = feature_network(("loss", "margin", "entropy", "class"), NUM_CLASSES, 5)
    update = make_bilevel_update(apply, weighting, optimizer, outer_optimizer, generate=generate)
    outer = it.outer | {"weighting": weighting.init(jax.random.key(0))}

    def run(mesh):
        arrays = (it.params, outer, it.examples, validation, sample_inputs)
        arrays = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, arrays)
        arrays = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P()))
        with jax.set_mesh(mesh):
            params, outer_here, *data = arrays
            step = jax.jit(update, donate_argnums=0)
            state = jax.jit(lambda: init_bilevel(params, optimizer, outer_here, outer_optimizer))()
            for _ in range(3):
                state, metrics = step(state, *data)
            program = step.lower(state, *data).compile().as_text()
        return jax.device_get((state, metrics)), program

    meshes = [
        jax.make_mesh((count, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:count])
        for count in (1, 8)
    ]
    (one, _), (eight, program) = map(run, meshes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), eight, one)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))
    assert "all-reduce" in program  # the work was parted, not repeated
