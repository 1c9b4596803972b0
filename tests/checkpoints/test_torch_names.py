"""Conversion of parameters, against names and operations of torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from utilgen_jax.checkpoints import torch_names


@pytest.mark.parametrize(
    ("name", "ndim", "path"),
    [
        ("down_blocks.0.resnets.1.conv1.weight", 4, ("down_blocks.0", "resnets.1", "conv1", "kernel")),
        ("attn.to_out.0.weight", 2, ("attn", "to_out.0", "kernel")),
        ("ff.net.0.proj.bias", 1, ("ff", "net.0", "proj", "bias")),
        ("conv_norm_out.weight", 1, ("conv_norm_out", "scale")),
        ("embeddings.token_embedding.weight", 2, ("embeddings", "token_embedding", "embedding")),
        ("embeddings.patch_embedding.weight", 4, ("embeddings", "patch_embedding", "kernel")),
        ("time_embedding.linear_1.weight", 2, ("time_embedding", "linear_1", "kernel")),
        ("embeddings.class_embedding", 1, ("embeddings", "class_embedding")),
        ("net.0.1.weight", 2, ("net.0.1", "kernel")),
        ("mean", 2, ("mean",)),
    ],
)
def test_name_round_trip(name, ndim, path):
    assert torch_names.to_linen_path(name, ndim) == path
    assert torch_names.to_torch_name(path) == name
    assert torch_names.to_torch_name((".".join(path[:-1]), path[-1]) if len(path) > 1 else path) == name


def test_linear_kernel_agrees_with_torch():
    layer = torch.nn.Linear(3, 5, bias=False)
    x = torch.randn(2, 3)
    kernel = torch_names.to_linen_layout(layer.weight.detach().numpy(), "kernel")
    np.testing.assert_allclose(x.numpy() @ kernel, layer(x).detach().numpy(), atol=1e-6)


def test_convolution_kernel_agrees_with_torch():
    layer = torch.nn.Conv2d(3, 5, (3, 1), bias=False)
    x = torch.randn(2, 3, 6, 7)
    kernel = torch_names.to_linen_layout(layer.weight.detach().numpy(), "kernel")
    images = jnp.transpose(x.numpy(), (0, 2, 3, 1))
    ours = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(jnp.transpose(ours, (0, 3, 1, 2)), layer(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5)])
def test_layout_round_trip(shape):
    tensor = np.arange(np.prod(shape)).reshape(shape)
    linen = torch_names.to_linen_layout(tensor, "kernel")
    np.testing.assert_array_equal(torch_names.to_torch_layout(linen, "kernel"), tensor)
    assert torch_names.torch_shape(linen.shape, "kernel") == shape


def test_buffers_are_left_out_and_old_names_renamed():
    current = torch_names.current_names(
        ["text_model.embeddings.position_ids", "decoder.mid_block.attentions.0.proj_attn.weight", "conv_in.weight"]
    )
    assert current == {
        "decoder.mid_block.attentions.0.proj_attn.weight": "decoder.mid_block.attentions.0.to_out.0.weight",
        "conv_in.weight": "conv_in.weight",
    }
