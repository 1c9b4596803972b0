import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import (
    FEATURES,
    WeightingInputs,
    feature_network,
    importance_ratio,
    loss_network,
    relative_weights,
    saflex,
    uniform,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 3)).astype(np.float32) * 2
LABELS = np.array([0, 1, 2, 0, 1])
EXAMPLES = Examples(
    inputs=jnp.zeros((5, 2)),
    targets=jax.nn.one_hot(LABELS, 3),
    difficulty=jnp.linspace(0, 1, 5),
    similarity=jnp.linspace(-1, 1, 5),
    attributes=jax.nn.one_hot(jnp.array([0, 1, 1, 0, 1]), 2),
)
SIGNALS = WeightingInputs(EXAMPLES, jnp.asarray(LOGITS))


@pytest.mark.parametrize(
    "weighting", [uniform(), loss_network(7), feature_network(tuple(FEATURES), 3, 7, 2), saflex()], ids=range(4)
)
def test_weights_are_in_0_1_and_labels_are_distributions(weighting):
    weighting_inputs = SIGNALS.replace(influence=jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32))
    params = weighting.init(jax.random.key(0))
    weights, targets = jax.jit(weighting.apply)(params, weighting_inputs)
    assert weights.shape == (5,) and weights.dtype == targets.dtype == jnp.float32
    assert weights.min() >= 0 and weights.max() <= 1
    np.testing.assert_allclose(targets.sum(-1), np.ones(5), rtol=1e-6)


def test_features_are_what_their_names_say():
    probabilities = scipy.special.softmax(LOGITS, -1)
    others = np.where(np.eye(3, dtype=bool)[LABELS], -1, probabilities).max(-1)
    entropy = torch.distributions.Categorical(logits=torch.tensor(LOGITS)).entropy().numpy()
    expected = {
        "loss": torch.nn.functional.cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS), reduction="none").numpy(),
        "margin": probabilities[np.arange(5), LABELS] - others,
        "entropy": entropy / np.log(3),
        "class": np.eye(3)[LABELS],
        "difficulty": np.linspace(0, 1, 5),
        "similarity": np.linspace(-1, 1, 5),
        "attributes": np.eye(2)[[0, 1, 1, 0, 1]],
    }
    assert set(expected) == set(FEATURES)
    for name, values in expected.items():
        np.testing.assert_allclose(FEATURES[name](SIGNALS), values, rtol=1e-5, atol=1e-6)


def test_importance_ratios_start_at_1_and_follow_the_logits():
    weighting = importance_ratio(2)
    params = weighting.init(jax.random.key(0))
    np.testing.assert_array_equal(weighting.apply(params, SIGNALS)[0], np.ones(5))
    weights, targets = weighting.apply({"logits": jnp.array([0.0, 2.0])}, SIGNALS)
    np.testing.assert_allclose(weights, np.exp([0, 2, 2, 0, 2]), rtol=1e-6)
    assert targets is EXAMPLES.targets
    with pytest.raises(ValueError, match="attributes"):
        weighting.apply(params, SIGNALS.replace(examples=EXAMPLES.replace(attributes=None)))


def test_the_loss_networks_weight_is_a_curve_of_the_loss():
    weighting = loss_network(7)
    params = weighting.init(jax.random.key(1))
    weights, targets = weighting.apply(params, SIGNALS)
    hidden = np.maximum(np.asarray(SIGNALS.losses)[:, None] @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    expected = scipy.special.expit(hidden @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_array_equal(targets, EXAMPLES.targets)


def test_a_feature_network_sees_its_features_only():
    weighting = feature_network(("difficulty", "class"), 3, 7)
    params = weighting.init(jax.random.key(1))
    assert params["hidden"]["kernel"].shape == (4, 7)
    before, _ = weighting.apply(params, SIGNALS)
    same, _ = weighting.apply(params, SIGNALS.replace(logits=-SIGNALS.logits))
    np.testing.assert_array_equal(before, same)
    other, _ = weighting.apply(params, SIGNALS.replace(examples=EXAMPLES.replace(difficulty=jnp.ones(5))))
    assert np.abs(before - other).max() > 1e-3


def test_what_is_wrong_with_features_is_told():
    with pytest.raises(ValueError, match="choose among loss, margin"):
        feature_network(("loss", "lots"), 3)
    with pytest.raises(ValueError, match="choose among"):
        feature_network((), 3)
    weighting = feature_network(("similarity",), 3)
    weighting_inputs = SIGNALS.replace(examples=EXAMPLES.replace(similarity=None))
    with pytest.raises(ValueError, match=r"looks at similarity, which these examples do not have: set Examples\.sim"):
        weighting.apply(weighting.init(jax.random.key(0)), weighting_inputs)


def test_saflex_by_numpy():
    influence = RNG.normal(size=(5, 3)) * 1e-4
    weights, targets = saflex(0.8, 0.3).apply({}, SIGNALS.replace(influence=jnp.asarray(influence)))
    own = influence - influence.mean(0)
    label_strength = 0.3 * (np.log(2) + scipy.special.logit(0.8))
    expected = scipy.special.softmax((own / own.std() + label_strength * np.eye(3)[LABELS]) / 0.3, -1)
    np.testing.assert_allclose(targets, expected, rtol=1e-4)
    np.testing.assert_array_equal(weights, (expected * influence).sum(-1) >= 0)
    assert 0 < weights.sum() < 5


def test_saflex_looks_at_doubtful_examples_only():
    influence = RNG.normal(size=(5, 3))
    doubtful = np.array([True, True, True, False, False])
    changed = np.where(doubtful[:, None], influence, 100 * influence)
    results = []
    for matrix in (influence, changed):
        weighting_inputs = SIGNALS.replace(
            examples=EXAMPLES.replace(is_weighted=jnp.asarray(doubtful)), influence=matrix
        )
        results.append(saflex().apply({}, weighting_inputs))
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][1][3:], EXAMPLES.targets[3:])
    np.testing.assert_array_equal(results[0][0][:3], results[1][0][:3])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_at_zero_influence_the_label_keeps_its_probability(num_classes, temperature):
    labels = np.array([0, 1, num_classes - 1])
    examples = Examples(jnp.zeros((3, 2)), jax.nn.one_hot(labels, num_classes))
    zeros = jnp.zeros((3, num_classes))
    _, targets = saflex(0.9, temperature).apply({}, WeightingInputs(examples, zeros, zeros))
    expected = np.full((3, num_classes), 0.1 / (num_classes - 1))
    expected[np.arange(3), labels] = 0.9
    np.testing.assert_allclose(targets, expected, rtol=1e-5)


def test_saflex_ignores_what_all_examples_have_in_common():
    influence = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
    for common in (jnp.zeros(3), jnp.array([3.0, 0.0, -1.0])):
        _, targets = saflex().apply({}, SIGNALS.replace(influence=influence + common))
        np.testing.assert_allclose(targets, saflex().apply({}, SIGNALS.replace(influence=influence))[1], rtol=1e-4)


def test_soft_labels_stay_as_they_are_at_zero_influence():
    soft = jnp.asarray(scipy.special.softmax(LOGITS, -1))
    zeros = jnp.zeros((5, 3))
    weighting_inputs = WeightingInputs(EXAMPLES.replace(targets=soft), zeros, zeros)
    np.testing.assert_allclose(saflex(1.0).apply({}, weighting_inputs)[1], soft, rtol=1e-5)
    _, targets = saflex(1.0).apply({}, SIGNALS.replace(influence=jnp.asarray(RNG.normal(size=(5, 3)))))
    np.testing.assert_array_equal(targets, EXAMPLES.targets)  # one-hot: there is no other class to move to


@pytest.mark.parametrize("influence", [None, np.zeros((5, 3), np.float32)])
def test_saflex_keeps_everything_where_nothing_is_known(influence):
    weights, targets = saflex().apply({}, SIGNALS.replace(influence=influence))
    np.testing.assert_array_equal(weights, np.ones(5))
    np.testing.assert_array_equal(targets.argmax(-1), LABELS)


def test_relative_weights_have_mean_1_over_those_that_are_weighed():
    is_weighted = np.array([True, False, True, True, False])
    found = relative_weights(jnp.array([0.1, 0.9, 0.2, 0.6, 0.0]), is_weighted)
    np.testing.assert_allclose(found, [1 / 3, 1, 2 / 3, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(relative_weights(jnp.zeros(5), is_weighted), [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(relative_weights(jnp.ones(5), np.zeros(5, bool)), np.ones(5))
