"""Residual networks against torch: transformers' for the ImageNet kind, plain functional calls for the CIFAR kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from tests.torch_parity import (
    flat_shapes,
    random_images,
    random_tensor,
    relative_error,
    to_torch,
    torch_state,
    variables_from_torch,
)
from tests.torch_resnets import torch_bottleneck_resnet, torch_cifar_resnet
from utilgen_jax.errors import InputError
from utilgen_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet, build_resnet

TOLERANCE = 1e-5
CLASSES = 5


def test_cifar_networks_agree_with_torch():
    depths = (2, 2, 1)
    module, images = ResNet(CLASSES, depths, width=8, norm="batch"), random_images(12)
    state = torch_state(module, images)
    expected = torch_cifar_resnet(state, images, depths)
    logits = jax.jit(module.apply)(variables_from_torch(state), images)
    assert relative_error(logits, expected) < TOLERANCE


@pytest.mark.parametrize(("groups", "width_per_group", "middle"), [(4, 16, 8), (1, 128, 16)], ids=["resnext", "wide"])
def test_grouped_and_wide_bottlenecks_are_torchs(groups, width_per_group, middle):
    block = partial(BottleneckBlock, groups=groups, width_per_group=width_per_group)
    module, images = ResNet(CLASSES, (1, 2), 8, block, imagenet=True, norm="batch"), random_images(33)
    state = torch_state(module, images)
    assert state["layer1.0.conv2.weight"].shape == (middle, middle // groups, 3, 3)
    expected = torch_bottleneck_resnet(state, images, (1, 2), groups)
    logits = jax.jit(module.apply)(variables_from_torch(state), images)
    assert relative_error(logits, expected) < TOLERANCE


# transformers' names for the parts of torchvision's network.
_PIECES = {
    "resnet.embedder.embedder.convolution": "conv1",
    "resnet.embedder.embedder.normalization": "bn1",
    "shortcut.convolution": "downsample.0",
    "shortcut.normalization": "downsample.1",
    "classifier.1": "fc",
}
_PIECES |= {f"resnet.encoder.stages.{stage}.layers": f"layer{stage + 1}" for stage in range(4)}
_PIECES |= {f"layer.{index}.convolution": f"conv{index + 1}" for index in range(3)}
_PIECES |= {f"layer.{index}.normalization": f"bn{index + 1}" for index in range(3)}


def torchvision_name(name):
    for piece, renamed in _PIECES.items():
        name = name.replace(piece, renamed)
    return name


@pytest.mark.parametrize(("kind", "block"), [("basic", BasicBlock), ("bottleneck", BottleneckBlock)])
def test_imagenet_networks_agree_with_transformers(kind, block):
    depths, width = (1, 2), 8
    config = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * block.expansion, 2 * width * block.expansion],
        depths=list(depths),
        layer_type=kind,
        num_labels=CLASSES,
    )
    torch_model = ResNetForImageClassification(config).eval()
    rng = np.random.default_rng(0)
    state = torch_model.state_dict()
    state = {name: random_tensor(rng, name, tuple(value.shape)) for name, value in state.items() if value.ndim}
    torch_model.load_state_dict(state, strict=False)
    images = random_images(33)  # odd: every stride and the pooling meet an edge
    with torch.no_grad():
        expected = torch_model(to_torch(images)).logits.numpy()
    module = ResNet(CLASSES, depths, width, block, imagenet=True, norm="batch")
    variables = variables_from_torch({torchvision_name(name): value for name, value in state.items()})
    expected_variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert flat_shapes(variables) == flat_shapes(expected_variables)
    assert relative_error(jax.jit(module.apply)(variables, images), expected) < TOLERANCE


def test_group_norm_is_torchs():
    images = np.random.default_rng(2).normal(1.0, 2.0, (2, 5, 5, 3)).astype(np.float32)
    module = ResNet(CLASSES, (), width=16)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(module.init, jax.random.key(0), images)["params"],
    )
    tensors = jax.tree.map(torch.tensor, params)
    hidden = functional.conv2d(to_torch(images), tensors["conv1"]["kernel"].permute(3, 2, 0, 1), padding=1)
    hidden = functional.group_norm(hidden, 2, tensors["bn1"]["scale"], tensors["bn1"]["bias"])
    pooled = functional.relu(hidden).mean((2, 3))
    expected = pooled @ tensors["linear"]["kernel"] + tensors["linear"]["bias"]
    assert relative_error(module.apply({"params": params}, images), expected.numpy()) < TOLERANCE


def number_of_parameters(name, size):
    module = build_resnet(name, 1000 if size == 64 else 10, norm="batch")
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_numbers_of_parameters_are_the_published_ones():
    # He et al. 2015, table 6, in millions; torchvision's documentation, exactly.
    assert [round(number_of_parameters(name, 32) / 1e6, 2) for name in ("resnet20", "resnet32", "resnet56")] == [
        0.27,
        0.46,
        0.85,
    ]
    published = {"resnet18": 11689512, "resnet34": 21797672, "resnet50": 25557032, "resnet101": 44549160}
    published |= {"resnext50": 25028904, "wide_resnet50": 68883240}
    assert {name: number_of_parameters(name, 64) for name in published} == published


def test_statistics_stay_and_images_do_not_see_one_another():
    module, images = ResNet(CLASSES, (1, 1), width=8, norm="batch"), random_images(8)
    variables = variables_from_torch(torch_state(module, images))
    logits, changed = module.apply(variables, images, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(logits[:1], module.apply(variables, images[:1]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_mixed_precision_keeps_parameters_and_logits_in_float32(norm):
    module, images = ResNet(CLASSES, (1, 1), width=8, norm=norm, dtype=jnp.bfloat16), random_images(8)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    text = jax.jit(module.apply).lower(variables, images).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 5 and all(line.rstrip().endswith("xbf16>") for line in convolutions)
    logits = module.apply(variables, images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, module.clone(dtype=jnp.float32).apply(variables, images), atol=0.1)


@pytest.mark.parametrize(("name", "norm"), [("resnet21", "group"), ("resnet20", "layer")])
def test_an_unknown_name_is_refused(name, norm):
    with pytest.raises(InputError, match="one of (resnet20|group), "):
        build_resnet(name, 10, norm)
