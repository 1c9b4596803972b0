"""The classifier and the weight network against the same networks in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from utilgen_jax.errors import InputError
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.models.weight_net import WeightNet

WIDTH, CLASSES = 8, 5


def random_params(model, inputs):
    """Makes all parameters distinct: scales of one and biases of zero would hide a missing one."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def small_cnn_in_torch(params, images):
    """SmallCNN in torch: [B, H, W, C] -> [B, K]."""
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
    hidden = torch.tensor(images).permute(0, 3, 1, 2)
    for index, pool in enumerate((1, 2, 2)):
        kernel = params[f"convolutions.{index}"]["kernel"].permute(3, 2, 0, 1)
        hidden = functional.conv2d(hidden, kernel, padding=1)
        norm = params[f"norms.{index}"]
        groups = hidden.shape[1] // 8
        hidden = functional.relu(functional.group_norm(hidden, groups, norm["scale"], norm["bias"], eps=1e-6))
        hidden = functional.max_pool2d(hidden, pool)
    hidden = functional.adaptive_avg_pool2d(hidden, 2).permute(0, 2, 3, 1).flatten(1)
    hidden = functional.relu(hidden @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return (hidden @ params["head"]["kernel"] + params["head"]["bias"]).numpy()


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3)])
def test_small_cnn(size, channels):
    model = build_classifier("small_cnn", CLASSES, WIDTH, size)
    images = np.random.default_rng(1).uniform(-1, 1, (4, size, size, channels)).astype(np.float32)
    params = random_params(model, images)
    logits = jax.jit(model.apply)({"params": params}, images)
    assert logits.shape == (4, CLASSES) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, small_cnn_in_torch(params, images), atol=1e-4)


def test_each_image_is_classified_by_itself():
    model = build_classifier("small_cnn", CLASSES, WIDTH, 8)
    images = np.random.default_rng(2).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
    assert set(jax.eval_shape(model.init, jax.random.key(0), images)) == {"params"}  # no batch statistics
    apply = jax.jit(model.apply)
    variables = {"params": random_params(model, images)}
    images_around_another = np.concatenate([images[:2], -images[2:3], images[3:]])
    logits, others = apply(variables, images), apply(variables, images_around_another)
    np.testing.assert_array_equal(np.delete(logits, 2, 0), np.delete(others, 2, 0))
    assert np.abs(logits[2] - others[2]).max() > 0.01


def test_the_number_of_parameters_does_not_depend_on_the_size_of_the_images():
    def shapes(size):
        model = build_classifier("small_cnn", CLASSES, WIDTH, size)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))

    assert shapes(8) == shapes(64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", 10, 32, 8), "config.classifier.name='resnet' is not one of small_cnn"),
        (("small_cnn", 10, 32, 4), "config.data.image_size=4: small_cnn requires multiples of 8"),
        (("small_cnn", 10, 32, 28), "config.data.image_size=28"),
        (("small_cnn", 10, 12, 8), "config.classifier.width=12 must be a multiple of 8"),
    ],
)
def test_unsupported_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build_classifier(*arguments)


def test_weight_net_is_one_hidden_layer_and_a_sigmoid():
    net = WeightNet(hidden=7)
    features = np.random.default_rng(3).normal(size=(9, 2)).astype(np.float32)
    params = random_params(net, features)
    weights = net.apply({"params": params}, features)
    hidden = np.maximum(features @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    logits = (hidden @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    assert weights.shape == (9,) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits)), rtol=1e-5)
