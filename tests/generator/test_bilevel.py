"""The generator in the bilevel update: adapter, weighting and classifier in one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.generator.toy import (
    CLASSES,
    SIDE,
    make_toy,
    normal,
    to_examples,
    toy_classifier,
    toy_classifier_params,
    toy_requests,
)
from utilgen_jax.bilevel import check_finite, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import feature_network, uniform
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.generator.adapter import AdapterConfig, generate_images, init_adapter, make_generate
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.finetune.draft import pathwise_loss
from utilgen_jax.generator.inputs import make_sample_inputs
from utilgen_jax.generator.utility import influence_utility
from utilgen_jax.models.classifiers import build_classifier

ADAMW = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, eps_root=1e-8))
SAMPLING = SamplingConfig(steps=3, guidance_scale=2.0, image_size=8)


def images(number, seed):
    return to_examples(normal(seed, number, SIDE, SIDE, 3), np.arange(number) % CLASSES)


def whole_adapter(params, sample_inputs):
    """Every part that there is."""
    return init_adapter(
        params,
        sample_inputs,
        AdapterConfig(
            lora_rank=2, num_prompts=CLASSES, num_noises=CLASSES, num_classes=CLASSES, difficulties=[0.3, 0.5, 0.7]
        ),
        jax.random.key(0),
    )


@pytest.mark.slow
def test_the_adapters_gradient_is_the_pathwise_one():
    sd = make_toy()
    sample_inputs, validation, theta = toy_requests(6), images(5, seed=3), toy_classifier_params()
    adapter = whole_adapter(sd.params, sample_inputs)
    generated = partial(generate_images, sd, sampling=SAMPLING, num_differentiable_steps=None)
    # A large outer step: the gradient is read off the difference of new and old.
    optimizer, outer_optimizer = optax.sgd(0.1, momentum=0.9), optax.sgd(1e4)
    update = make_bilevel_update(
        toy_classifier, uniform(), optimizer, outer_optimizer, generate=make_generate(generated, to_examples)
    )
    state = init_bilevel(theta, optimizer, {"adapter": adapter}, outer_optimizer)
    new, metrics = jax.jit(update)(state, None, validation, sample_inputs)
    found = jax.tree.map(lambda old, new: (old - new) / 1e4, adapter, new.outer["adapter"])

    @jax.jit
    def expected():
        examples = to_examples(generated(adapter, sample_inputs), sample_inputs.labels)
        ahead = influence(toy_classifier, optimizer, theta, optimizer.init(theta), examples, validation)
        utility = influence_utility(toy_classifier, theta, ahead.direction, to_examples)
        gradient = jax.grad(pathwise_loss)(adapter, sample_inputs, generate_images=generated, utility=utility)
        return gradient, utility(examples.inputs, sample_inputs.labels), ahead.validation_loss

    gradient, utilities, loss = expected()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-8)
    assert sum(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)) > 8  # but for the LoRA's first factors
    np.testing.assert_allclose(metrics.utilities, utilities, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics.validation_loss, loss, rtol=1e-5)


@pytest.mark.slow
def test_fifty_whole_updates_compile_once_and_stay_finite():
    sd = make_toy()
    sample_inputs = toy_requests(6)
    weighting = feature_network(("loss", "margin", "entropy", "class", "difficulty"), CLASSES, 8)
    traces = []

    def counted(theta, inputs):
        traces.append(None)
        return toy_classifier(theta, inputs)

    outer_optimizer = optax.adam(1e-2)
    generate = make_generate(
        partial(generate_images, sd, sampling=SAMPLING, num_differentiable_steps=None), to_examples
    )
    update = jax.jit(
        make_bilevel_update(counted, weighting, ADAMW, outer_optimizer, generate=generate), donate_argnums=0
    )
    outer = {"weighting": weighting.init(jax.random.key(1)), "adapter": whole_adapter(sd.params, sample_inputs)}
    # The LoRA's second factors are zero at first, and so is the gradient of the first ones.
    state = init_bilevel(toy_classifier_params(), ADAMW, jax.tree.map(jnp.copy, outer), outer_optimizer)
    for step in range(50):
        state, metrics = update(state, None, images(6, seed=3), toy_requests(6, seed=step))
        if step == 0:
            first = len(traces)
    assert len(traces) == first
    check_finite(metrics.first_nonfinite)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), state.outer, outer)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_eight_devices_share_one_update():
    sd = make_toy()
    sample_inputs, validation, theta = toy_requests(8), images(8, seed=3), toy_classifier_params()
    real = images(8, seed=4).replace(is_weighted=jnp.zeros(8, bool))
    generate = make_generate(
        partial(generate_images, sd, sampling=SAMPLING, num_differentiable_steps=None), to_examples
    )
    weighting = feature_network(("loss", "class"), CLASSES, 8)
    outer = {"weighting": weighting.init(jax.random.key(1)), "adapter": whole_adapter(sd.params, sample_inputs)}
    update = make_bilevel_update(toy_classifier, weighting, ADAMW, optax.sgd(1.0), generate=generate)
    results = []
    for count in (1, 8):
        axes = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh((count, 1), ("data", "fsdp"), axes, devices=jax.devices()[:count])
        arguments = init_bilevel(theta, ADAMW, outer, optax.sgd(1.0)), real, validation, sample_inputs
        arguments = jax.device_put(arguments, jax.NamedSharding(mesh, jax.P()))
        with jax.set_mesh(mesh):
            results.append(jax.device_get(jax.jit(update)(*arguments)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *results)


@pytest.mark.slow
def test_with_stable_diffusion_and_a_convolutional_classifier(loaded):
    sd = loaded("sd15")
    sampling = SamplingConfig(steps=2, guidance_scale=2.0, image_size=16)
    sample_inputs = make_sample_inputs(sd, ["a photo of a cat", "a photo of a dog"], [0, 1], [3, 4], sampling)
    adapter = init_adapter(
        sd.params,
        sample_inputs,
        AdapterConfig(lora_rank=2, num_prompts=2, num_classes=2, difficulties=[0.4, 0.6]),
        jax.random.key(0),
    )
    module = build_classifier("small_cnn", 2, 8, 16)
    view = ClassifierInput(2, image_size=16, channels=3).examples
    weighting = feature_network(("loss", "class", "difficulty"), 2, 8)
    outer_optimizer = optax.adam(1e-3)

    @partial(jax.jit, donate_argnums=0)
    def step(state, sd, examples, validation, sample_inputs):
        generated = partial(generate_images, sd, sampling=sampling)
        update = make_bilevel_update(
            lambda theta, images: module.apply({"params": theta}, images),
            weighting,
            ADAMW,
            outer_optimizer,
            generate=make_generate(generated, view),
        )
        return update(state, examples, validation, sample_inputs)

    images = normal(0, 2, 16, 16, 3)
    examples = Examples(images, jnp.eye(2), is_weighted=jnp.zeros(2, bool), difficulty=jnp.array([0.2, 0.9]))
    theta = module.init(jax.random.key(2), images)["params"]
    outer = {"weighting": weighting.init(jax.random.key(1)), "adapter": adapter}
    before = jax.tree.map(np.asarray, outer)
    state = init_bilevel(theta, ADAMW, outer, outer_optimizer)
    for _ in range(3):
        state, metrics = step(state, sd, examples, view(normal(1, 2, 16, 16, 3), jnp.arange(2)), sample_inputs)
    check_finite(metrics.first_nonfinite)
    assert metrics.utilities.shape == (4,)
    # Adam moves what has a gradient; the first factors' is no longer zero once the second ones have moved.
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), state.outer, before)
    assert min(jax.tree.leaves(moved)) > 0
