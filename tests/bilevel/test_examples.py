import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.bilevel.examples import Examples, concatenate, labelled


def draw(number, seed=0, **fields):
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.ones(3), number).astype(np.float32)
    return Examples(jnp.asarray(rng.normal(size=(number, 4)), jnp.float32), jnp.asarray(targets), **fields)


def test_labelled_inputs_keep_class_labels_until_they_are_made_dense():
    inputs = np.arange(8.0).reshape(4, 2)
    examples = labelled(inputs, np.array([2, 0, 2, 1]), 5)
    assert len(examples) == 4 and examples.inputs is inputs
    np.testing.assert_array_equal(examples.targets, [2, 0, 2, 1])
    dense = examples.dense()
    np.testing.assert_array_equal(dense.targets, np.eye(5)[[2, 0, 2, 1]])
    np.testing.assert_array_equal(dense.labels, examples.labels)
    assert dense.dense() is dense
    assert dense.targets.dtype == examples.weights.dtype == jnp.float32


def test_labels_beside_soft_labels_become_distributions():
    hard, soft = labelled(np.zeros((2, 1)), np.array([1, 0]), 2), Examples(jnp.ones((1, 1)), jnp.array([[0.3, 0.7]]))
    both = concatenate(hard, soft)
    np.testing.assert_array_equal(both.targets, np.array([[0, 1], [1, 0], [0.3, 0.7]], np.float32))


def test_weights_of_labelled_inputs_are_1():
    examples = labelled(np.zeros((4, 2)), np.array([2, 0, 2, 1]), 5)
    np.testing.assert_array_equal(examples.weights, np.ones(4))
    np.testing.assert_array_equal(examples.labels, [2, 0, 2, 1])
    for name in ("is_weighted", "difficulty", "similarity", "attributes"):
        assert getattr(examples, name) is None


def test_labels_are_the_most_probable_classes():
    targets = jnp.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    labels = jax.jit(lambda examples: examples.labels)(Examples(jnp.zeros((3, 1)), targets))
    np.testing.assert_array_equal(labels, [1, 0, 2])
    assert labels.dtype == jnp.int32


def test_take_keeps_the_fields_of_an_example_together_in_the_given_order():
    numbers = jnp.arange(5.0)
    examples = Examples(
        {"images": numbers[:, None, None] * jnp.ones((1, 2, 2)), "captions": numbers},
        jnp.eye(5),
        weights=numbers,
        is_weighted=numbers > 2,
        difficulty=numbers / 10,
        attributes=numbers[:, None] * jnp.array([1.0, -1.0]),
    )
    chosen = np.array([4, 0, 0, 3])
    taken = examples.take(chosen)
    assert len(taken) == 4 and taken.similarity is None
    np.testing.assert_array_equal(taken.inputs["captions"], chosen)
    np.testing.assert_array_equal(taken.inputs["images"][:, 1, 0], chosen)
    np.testing.assert_array_equal(taken.labels, chosen)
    np.testing.assert_array_equal(taken.weights, chosen)
    np.testing.assert_array_equal(taken.is_weighted, [True, False, False, True])
    np.testing.assert_allclose(taken.difficulty, chosen / 10)
    np.testing.assert_array_equal(taken.attributes, chosen[:, None] * np.array([1, -1]))


def test_a_weighting_decides_on_all_unless_stated():
    np.testing.assert_array_equal(draw(3).weighted, np.ones(3, bool))
    decided = draw(3, is_weighted=jnp.array([True, False, True]))
    np.testing.assert_array_equal(decided.weighted, [True, False, True])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), draw(3))
    np.testing.assert_array_equal(stacked.weighted, np.ones((2, 3), bool))


def test_joining_states_which_examples_are_weighted():
    real = draw(2, is_weighted=jnp.zeros(2, bool), difficulty=jnp.ones(2))
    synthetic = draw(3, seed=1)
    both = concatenate(real, synthetic)
    np.testing.assert_array_equal(both.is_weighted, [False, False, True, True, True])
    for name in ("inputs", "targets"):
        parts = [np.asarray(getattr(part, name)) for part in (real, synthetic)]
        np.testing.assert_array_equal(getattr(both, name), np.concatenate(parts))
    np.testing.assert_array_equal(concatenate(synthetic, synthetic).is_weighted, np.ones(6, bool))


def test_what_both_know_is_joined_and_what_one_knows_is_dropped():
    first = draw(2, weights=jnp.array([1.0, 2.0]), difficulty=jnp.ones(2), attributes=jnp.ones((2, 3)))
    second = draw(3, seed=1, weights=jnp.array([3.0, 4.0, 5.0]), similarity=jnp.ones(3))
    both = concatenate(first, second)
    np.testing.assert_array_equal(both.weights, [1, 2, 3, 4, 5])
    assert both.difficulty is both.similarity is both.attributes is None
    assert concatenate(first.replace(weights=None), second).weights is None


@pytest.mark.parametrize("swapped", [False, True])
def test_fields_to_fill_are_zero_where_a_batch_lacks_them(swapped):
    bare = draw(2, weights=jnp.ones(2), difficulty=jnp.ones(2))
    attributed = draw(3, seed=1, weights=2 * jnp.ones(3), attributes=jnp.arange(6.0).reshape(3, 2) + 1)
    pair, order = ((attributed, bare), [1, 0]) if swapped else ((bare, attributed), [0, 1])
    both = concatenate(*pair, fill=("attributes",))
    blocks = [np.zeros((2, 2)), np.arange(6.0).reshape(3, 2) + 1]
    np.testing.assert_array_equal(both.attributes, np.concatenate([blocks[place] for place in order]))
    np.testing.assert_array_equal(
        both.weights, np.concatenate([[np.ones(2), 2 * np.ones(3)][place] for place in order])
    )
    # Only what is named, and only where one batch knows it.
    assert both.difficulty is None
    assert concatenate(bare, bare, fill=("attributes",)).attributes is None


def test_with_an_axis_of_inner_steps_the_examples_are_joined_along_the_second():
    def stack(examples):
        return jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), examples)

    first, second = stack(draw(2, difficulty=jnp.ones(2))), stack(draw(3, seed=1, attributes=jnp.ones((3, 2))))
    both = concatenate(first, second, axis=1, fill=("attributes", "difficulty"))
    assert both.inputs.shape == (2, 5, 4) and both.targets.shape == (2, 5, 3) and both.is_weighted.shape == (2, 5)
    expected = np.concatenate([np.zeros((2, 2, 2)), np.array([1, 2])[:, None, None] * np.ones((2, 3, 2))], axis=1)
    np.testing.assert_array_equal(both.attributes, expected)
    np.testing.assert_array_equal(both.difficulty, [[1, 1, 0, 0, 0], [2, 2, 0, 0, 0]])


def test_examples_pass_through_jit_and_fields_that_are_none_stay_none():
    examples = draw(3, weights=jnp.arange(3.0))
    doubled = jax.jit(lambda examples: jax.tree.map(lambda leaf: 2 * leaf, examples))(examples)
    np.testing.assert_array_equal(doubled.weights, 2 * np.arange(3.0))
    assert doubled.is_weighted is doubled.attributes is None
