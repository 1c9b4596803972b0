"""The vision transformer against transformers', with parameters renamed to timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tests.torch_parity import (
    flat_shapes,
    random_images,
    random_tensor,
    relative_error,
    to_torch,
    variables_from_torch,
)
from utilgen_jax.errors import InputError
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.models.vit import VisionTransformer

CLASSES, WIDTH, HEADS, DEPTH = 5, 24, 3, 2
# transformers' names for the parts of timm's network.
_PIECES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layers": "blocks",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "vit.layernorm": "norm",
    "classifier": "head",
}


def timm_state(state):
    """Converts transformers' state dict to timm's names, with joint queries, keys and values."""
    renamed = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name, tensor = name.replace("attention.q_proj", "attn.qkv"), torch.cat(parts)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        for piece, timms in _PIECES.items():
            name = name.replace(piece, timms)
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def parity():
    """A small transformer with random weights: images, transformers' logits, linen variables."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=16,
        patch_size=4,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,  # timm's
    )
    torch_model = ViTForImageClassification(config).eval()
    rng = np.random.default_rng(0)
    state = {name: random_tensor(rng, name, tuple(value.shape)) for name, value in torch_model.state_dict().items()}
    torch_model.load_state_dict(state)
    images = random_images(16)
    with torch.no_grad():
        expected = torch_model(to_torch(images)).logits.numpy()
    return images, expected, variables_from_torch(timm_state(state))


def test_it_is_transformers(parity):
    images, expected, variables = parity
    module = VisionTransformer(CLASSES, 4, WIDTH, DEPTH, HEADS)
    assert flat_shapes(variables) == flat_shapes(jax.eval_shape(module.init, jax.random.key(0), images))
    assert relative_error(jax.jit(module.apply)(variables, images), expected) < 1e-5


def test_mixed_precision_keeps_parameters_and_logits_in_float32(parity):
    images, expected, variables = parity
    module = VisionTransformer(CLASSES, 4, WIDTH, DEPTH, HEADS, dtype=jnp.bfloat16)
    drawn = jax.eval_shape(module.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    logits = jax.jit(module.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert 1e-5 < relative_error(logits, expected) < 0.05


def test_it_has_as_many_parameters_as_timms():
    # timm's documentation of vit_small_patch16_224: 22.05 million.
    module = build_classifier("vit_s", 1000, 32, 224)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 22050664


@pytest.mark.parametrize(("size", "tokens"), [(8, 4), (28, 49), (32, 64), (64, 16), (224, 196)])
def test_small_images_have_small_patches(size, tokens):
    module = build_classifier("vit_s", CLASSES, 32, size)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    assert shapes["params"]["pos_embed"].shape == (1, tokens + 1, 384)


@pytest.mark.parametrize("size", [30, 72])
def test_indivisible_image_sizes_are_refused(size):
    with pytest.raises(InputError, match=f"config.data.image_size={size}: vit_s needs multiples of 4"):
        build_classifier("vit_s", CLASSES, 32, size)
