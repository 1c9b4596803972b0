"""MobileNetV2 against transformers', with parameters renamed to torchvision's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from tests.torch_parity import (
    flat_shapes,
    random_images,
    random_tensor,
    relative_error,
    to_torch,
    variables_from_torch,
)
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.models.mobilenet import MobileNetV2

CLASSES = 5
# Half of the published channels, in multiples of 8.
HALF = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
_STEM = {"first_conv": "0.", "conv_3x3": "1.conv.0.", "reduce_1x1": "1.conv."}
_PIECES = {"expand_1x1": "conv.0.", "conv_3x3": "conv.1.", "reduce_1x1": "conv."}


def torchvision_name(name):
    """Converts transformers' names to torchvision's, which number convolutions and norms consecutively."""
    name = name.removeprefix("mobilenet_v2.")
    name = re.sub(r"^classifier", "classifier.1", name)
    name = re.sub(r"^conv_1x1\.", "features.18.", name)
    name = re.sub(r"^conv_stem\.(\w+)\.", lambda match: "features." + _STEM[match[1]], name)
    name = re.sub(r"^layer\.(\d+)\.(\w+)\.", lambda match: f"features.{int(match[1]) + 2}.{_PIECES[match[2]]}", name)
    is_last = re.search(r"conv\.(convolution|normalization)", name)
    first = 0 if not is_last else 1 if name.startswith("features.1.") else 2
    return name.replace("convolution", str(first)).replace("normalization", str(first + 1))


def test_it_is_transformers():
    config = MobileNetV2Config(
        depth_multiplier=0.5, finegrained_output=False, tf_padding=False, layer_norm_eps=1e-5, num_labels=CLASSES
    )
    torch_model = MobileNetV2ForImageClassification(config).eval()
    rng = np.random.default_rng(0)
    state = {
        name: random_tensor(rng, name, tuple(value.shape))
        for name, value in torch_model.state_dict().items()
        if value.ndim
    }
    torch_model.load_state_dict(state, strict=False)
    images = random_images(65)  # odd: every stride meets an edge
    with torch.no_grad():
        expected = torch_model(to_torch(images)).logits.numpy()
    module = MobileNetV2(CLASSES, HALF, stem=16, last=640, norm="batch")
    variables = variables_from_torch({torchvision_name(name): value for name, value in state.items()})
    assert flat_shapes(variables) == flat_shapes(jax.eval_shape(module.init, jax.random.key(0), images))
    assert relative_error(jax.jit(module.apply)(variables, images), expected) < 1e-5


def test_it_has_as_many_parameters_as_torchvisions():
    module = build_classifier("mobilenet_v2", 1000, 32, 64, norm="batch")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 3504872


def test_group_norm_divides_all_channels_and_mixed_precision_ends_in_float32():
    module = build_classifier("mobilenet_v2", CLASSES, 32, 32, jnp.bfloat16)
    images = jnp.zeros((1, 32, 32, 3))
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32 and logits.shape == (1, CLASSES)
