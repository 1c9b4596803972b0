"""The pathwise gradient against the derivative of the validation loss itself, through the classifier's step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.generator import toy
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import cross_entropies, influence
from utilgen_jax.generator.adapter import AdapterConfig, generate_images, init_adapter
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.finetune.draft import pathwise_loss
from utilgen_jax.generator.utility import influence_utility

PARAMS = toy.toy_classifier_params()
VALIDATION = Examples(
    inputs=toy.normal(0, 5, toy.SIDE, toy.SIDE, 1), targets=np.eye(3, dtype=np.float32)[np.arange(5) % 3]
)
OPTIMIZER = optax.adam(0.1, eps_root=1e-8)


def validation_loss_after_step(images, labels):
    """Written out anew, to be differentiated as a whole."""
    examples = toy.to_examples(images, labels)
    gradient = jax.grad(lambda params: cross_entropies(toy.toy_classifier, params, examples).mean())(PARAMS)
    updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(PARAMS), PARAMS)
    return cross_entropies(toy.toy_classifier, optax.apply_updates(PARAMS, updates), VALIDATION).mean()


@pytest.mark.slow
def test_it_is_the_gradient_of_the_validation_loss_after_the_step():
    sd = toy.make_toy()
    sample_inputs = toy.toy_requests(6)
    # As it is at first, with `up` zero, so that `down` has no gradient at all: Adam must bear that.
    adapter = init_adapter(
        sd.params, sample_inputs, AdapterConfig(lora_rank=2, num_prompts=toy.CLASSES), jax.random.key(0)
    )
    generated = partial(
        generate_images,
        sd,
        sampling=SamplingConfig(steps=3, guidance_scale=2.0, image_size=8),
        num_differentiable_steps=2,
    )

    @jax.jit
    def by_hand(adapter):
        return jax.grad(
            lambda adapter: validation_loss_after_step(generated(adapter, sample_inputs), sample_inputs.labels)
        )(adapter)

    @jax.jit
    def pathwise(adapter):
        examples = toy.to_examples(generated(adapter, sample_inputs), sample_inputs.labels)
        found = influence(toy.toy_classifier, OPTIMIZER, PARAMS, OPTIMIZER.init(PARAMS), examples, VALIDATION)
        utility = influence_utility(toy.toy_classifier, PARAMS, found.direction, toy.to_examples)
        utilities = jnp.sum(examples.targets * found.matrix, axis=-1)
        return utilities, jax.value_and_grad(pathwise_loss)(
            adapter, sample_inputs, generate_images=generated, utility=utility
        )

    expected = by_hand(adapter)
    utilities, (loss, gradient) = pathwise(adapter)
    assert optax.tree.norm(expected) > 1e-4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, expected)
    np.testing.assert_allclose(loss, -utilities.mean(), rtol=1e-5)
