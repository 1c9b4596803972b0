import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import (
    WeightingInputs,
    importance_ratio,
    loss_network,
    product,
    saflex,
    uniform,
)


def test_weights_are_multiplied_and_labels_stay():
    weighting = product(network=loss_network(5), attributes=importance_ratio(2))
    params = weighting.init(jax.random.key(0))
    params["attributes"]["logits"] = jnp.array([0.5, -1.0])
    examples = Examples(jnp.zeros((3, 2)), jnp.eye(3), attributes=jnp.array([[1.0, 0], [0, 1], [1, 1]]))
    inputs = WeightingInputs(examples, jnp.arange(9.0).reshape(3, 3))
    weights, targets = weighting.apply(params, inputs)
    alone, _ = loss_network(5).apply(params["network"], inputs)
    np.testing.assert_allclose(weights, alone * np.exp([0.5, -1.0, -0.5]), rtol=1e-6)
    np.testing.assert_array_equal(targets, examples.targets)


def test_parts_have_keys_of_their_own():
    params = product(one=loss_network(5), two=loss_network(5)).init(jax.random.key(0))
    assert np.abs(params["one"]["hidden"]["kernel"] - params["two"]["hidden"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("weightings", [{}, {"one": uniform(), "two": saflex()}])
def test_there_is_one_and_none_needs_influence(weightings):
    with pytest.raises(ValueError, match="need no influence"):
        product(**weightings)
