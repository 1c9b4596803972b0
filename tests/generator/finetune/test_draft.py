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
from utilgen_jax.generator.adapter import init_policy, paint
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
    generator, params = toy.make_toy()
    requests = toy.toy_requests(6)
    # As it is at first, with `up` zero, so that `down` has no gradient at all: Adam must bear that.
    policy = init_policy(params, requests, jax.random.key(0), lora_rank=2, num_prompts=toy.CLASSES)
    painted = partial(paint, generator, params, num_steps=3, guidance_scale=2.0, num_differentiable_steps=2)

    @jax.jit
    def by_hand(policy):
        return jax.grad(lambda policy: validation_loss_after_step(painted(policy, requests), requests.labels))(policy)

    @jax.jit
    def pathwise(policy):
        examples = toy.to_examples(painted(policy, requests), requests.labels)
        found = influence(toy.toy_classifier, OPTIMIZER, PARAMS, OPTIMIZER.init(PARAMS), examples, VALIDATION)
        utility = influence_utility(toy.toy_classifier, PARAMS, found.direction, toy.to_examples)
        utilities = jnp.sum(examples.targets * found.matrix, axis=-1)
        return utilities, jax.value_and_grad(pathwise_loss)(policy, requests, paint=painted, utility=utility)

    expected = by_hand(policy)
    utilities, (loss, gradient) = pathwise(policy)
    assert optax.tree.norm(expected) > 1e-4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, expected)
    np.testing.assert_allclose(loss, -utilities.mean(), rtol=1e-5)
