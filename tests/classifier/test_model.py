"""A classifier with frozen parts: where it starts, what it learns, and how the lookahead sees it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import toy_images
from tests.torch_parity import random_images, torch_state, variables_from_torch
from tests.toy_images import NUM_CLASSES, VALUATION, draw_set
from utilgen_jax.classifier.model import Classifier, make_classifier, normalize
from utilgen_jax.classifier.train import init_classifier, make_optimizer, predict_logits, train_classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.models.norms import FrozenBatchNorm
from utilgen_jax.runtime import sharding
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.cross_fit import cross_fit

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=6, max_shift=0)


class Backbone(nn.Module):
    """A hidden layer with batch norm, and a head."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.Dense(16, name="hidden")(images.reshape(len(images), -1))
        return nn.Dense(NUM_CLASSES, name="head")(nn.relu(FrozenBatchNorm(name="bn1")(hidden)))


class Head(nn.Module):
    """The head alone, of features in the place of images."""

    @nn.compact
    def __call__(self, features):
        return nn.Dense(NUM_CLASSES, name="head")(features.reshape(len(features), -1))


VARIABLES = variables_from_torch(torch_state(Backbone(), np.zeros((1, 8, 8, 1), np.float32)))
PARAMS, STATISTICS = VARIABLES["params"], VARIABLES["batch_stats"]
WHOLE = Classifier(Backbone(), frozen={"batch_stats": STATISTICS}, initial=PARAMS)
HEAD_ONLY = Classifier(
    Backbone(),
    frozen={"batch_stats": STATISTICS, "params": {name: PARAMS[name] for name in ("hidden", "bn1")}},
    initial={"head": PARAMS["head"]},
)
ON_FEATURES = Classifier(Head(), initial={"head": PARAMS["head"]})


def features(examples):
    """The examples as the frozen part shows them to the head."""
    hidden = examples.inputs.reshape(len(examples), -1) @ PARAMS["hidden"]["kernel"] + PARAMS["hidden"]["bias"]
    mean, variance = (STATISTICS["bn1"][f"running_{name}"] for name in ("mean", "var"))
    hidden = (hidden - mean) / np.sqrt(variance + 1e-5) * PARAMS["bn1"]["scale"] + PARAMS["bn1"]["bias"]
    return dataclasses.replace(examples, inputs=np.maximum(hidden, 0)[:, None, None].astype(np.float32))


def train(classifier, *examples):
    return train_classifier(classifier, CONFIG, *examples, jax.random.key(0), TrainingLoop())


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.fixture(scope="module")
def toy():
    return draw_set(4, seed=0)[0], draw_set(6, seed=1)[0]


def test_imagenet_normalization_is_torchvisions():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.uint8)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(images / np.float32(127.5) - 1, "imagenet"), expected, atol=1e-5)
    assert normalize(images, "none") is images


@pytest.mark.slow
def test_a_frozen_backbone_under_a_head_is_training_on_its_features(toy):
    trained = train(HEAD_ONLY, *toy)
    assert_close(trained, train(ON_FEATURES, *map(features, toy)), atol=1e-5)
    assert np.abs(trained["head"]["kernel"] - PARAMS["head"]["kernel"]).max() > 1e-3
    real = toy[0]
    logits = predict_logits(HEAD_ONLY, trained, real.inputs, 5)
    np.testing.assert_allclose(logits, predict_logits(ON_FEATURES, trained, features(real).inputs, 5), atol=1e-5)


def test_a_frozen_backbone_has_neither_optimizer_state_nor_gradient(toy):
    params = init_classifier(HEAD_ONLY, (8, 8, 1), jax.random.key(0))
    moments = jax.tree.leaves(make_optimizer(CONFIG).init(params))
    assert {leaf.shape for leaf in moments} == {(), (16, NUM_CLASSES), (NUM_CLASSES,)}

    def products(classifier):
        params = init_classifier(classifier, (8, 8, 1), jax.random.key(0))
        gradient = jax.grad(lambda params, images: classifier.apply(params, images).sum())
        return str(jax.make_jaxpr(gradient)(params, toy[0].inputs)).count("dot_general[")

    # Two matrices forward, and the head's gradient; and then the hidden activations' and the first matrix's.
    assert (products(HEAD_ONLY), products(WHOLE)) == (3, 5)


def test_statistics_stay_while_everything_else_learns(toy):
    trained = train(WHOLE, *toy)
    assert jax.tree.structure(trained) == jax.tree.structure(PARAMS)
    for before, after in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(trained), strict=True):
        assert np.abs(before - after).max() > 1e-4


def test_training_can_start_from_the_same_weights_again(toy):
    # A step takes over the memory of the parameters that it is given: the classifier must keep its own.
    placed = sharding.replicate(WHOLE)
    assert_close(train(placed, *toy), train(placed, *toy), rtol=0)
    assert_close(placed.initial, PARAMS, rtol=0)


def test_scopes_that_nothing_gives_are_drawn_at_random():
    bare = dataclasses.replace(HEAD_ONLY, initial={})
    first, again, other = (init_classifier(bare, (8, 8, 1), jax.random.key(seed)) for seed in (0, 0, 1))
    assert set(first) == {"head"}
    assert_close(first, again, rtol=0)
    assert np.abs(first["head"]["kernel"] - other["head"]["kernel"]).max() > 0.1


@pytest.mark.slow
def test_the_lookahead_goes_through_frozen_parts(toy):
    folds = cross_fit_folds(toy[0].labels, 2, 0)

    def value(classifier, real, pool):
        arguments = real, pool, folds, jax.random.key(0), TrainingLoop()
        return cross_fit(classifier, CONFIG, VALUATION, "loss_network", *arguments)

    found, expected = value(HEAD_ONLY, *toy), value(ON_FEATURES, *map(features, toy))
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-4)


def test_the_mesh_does_not_change_the_result(toy):
    expected = train(HEAD_ONLY, *toy)
    with jax.set_mesh(sharding.make_mesh()):
        found = train(*sharding.replicate((HEAD_ONLY, *toy)))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found))
    assert_close(found, expected, atol=1e-5)


SETTINGS = SimpleNamespace(name="mlp", width=8, dtype="float32", pretrained="", trainable="all", normalization="none")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """A file with an mlp's weights for five classes, and their linen variables."""
    state = torch_state(build_classifier("mlp", 5, 8, 8), random_images(8))
    path = tmp_path_factory.mktemp("weights") / "mlp.npz"
    np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    return path, variables_from_torch(state)


@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("num_classes", [5, 3])
def test_settings_decide_what_is_loaded_and_what_is_trained(mlp, capsys, trainable, num_classes):
    path, variables = mlp
    settings = SimpleNamespace(**{**vars(SETTINGS), "pretrained": str(path), "trainable": trainable})
    classifier = make_classifier(settings, num_classes, 8, 3)
    params = init_classifier(classifier, (8, 8, 3), jax.random.key(0))
    assert set(params) == ({"head"} if trainable == "head" else set(variables["params"]))
    images = random_images(8)
    logits = classifier.apply(params, images)
    assert logits.shape == (2, num_classes)
    told = capsys.readouterr().err
    if num_classes == 5:
        assert not told
        expected = build_classifier("mlp", 5, 8, 8).apply(variables, images)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    else:
        assert f"{path}: has no head for 3 classes; head starts from random weights" in told


def test_without_weights_it_is_the_plain_network(mlp):
    _, variables = mlp
    settings = SimpleNamespace(**{**vars(SETTINGS), "normalization": "imagenet"})
    classifier = make_classifier(settings, 5, 8, 3)
    assert not jax.tree.leaves(classifier)
    images = random_images(8)
    expected = build_classifier("mlp", 5, 8, 8).apply(variables, normalize(images, "imagenet"))
    np.testing.assert_array_equal(classifier.apply(variables["params"], images), expected)
    half = make_classifier(SimpleNamespace(**{**vars(SETTINGS), "dtype": "bfloat16"}), 5, 8, 3)
    assert half.module.dtype == jnp.bfloat16
