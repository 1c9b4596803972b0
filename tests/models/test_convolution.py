import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from utilgen_jax.models.convolution import convolution, max_pool_2x2, patches_convolution


@pytest.mark.slow
def test_patches_give_the_convolution_and_its_gradients():
    images = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    ours = nn.Conv(4, (3, 3), use_bias=False, conv_general_dilated=patches_convolution)
    params = ours.init(jax.random.key(1), images)
    plain = nn.Conv(4, (3, 3), use_bias=False)

    def loss(module, params, images):
        return jnp.sum(jnp.sin(module.apply(params, images)))

    np.testing.assert_allclose(ours.apply(params, images), plain.apply(params, images), rtol=1e-5, atol=1e-6)
    ours_gradient = jax.grad(lambda *a: loss(ours, *a), argnums=(0, 1))(params, images)
    plain_gradient = jax.grad(lambda *a: loss(plain, *a), argnums=(0, 1))(params, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours_gradient, plain_gradient)


FEW_PIXELS = (2, 3, 4, 32)  # fewer than channels


def lowered(images, platform, **settings):
    module = nn.Conv(8, **{"kernel_size": (3, 3), "padding": 1, **settings}, conv_general_dilated=convolution)
    params = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.jit(module.apply).trace(params, images).lower(lowering_platforms=(platform,)).as_text()


def test_few_pixels_are_convolved_as_patches_on_cpus_alone():
    images = jnp.ones(FEW_PIXELS)
    assert "stablehlo.convolution" not in lowered(images, "cpu")
    assert "stablehlo.convolution" in lowered(images, "tpu")
    assert "stablehlo.dot_general" not in lowered(images, "tpu")


@pytest.mark.parametrize(
    "settings", [{"strides": 2}, {"kernel_size": (1, 1), "padding": 0}, {"padding": 0}, {"kernel_dilation": 2}]
)
def test_other_convolutions_are_left_to_xla(settings):
    assert "stablehlo.convolution" in lowered(jnp.ones(FEW_PIXELS), "cpu", **settings)


def test_many_pixels_are_left_to_xla():
    assert "stablehlo.convolution" in lowered(jnp.ones((2, 4, 8, 32)), "cpu")


def test_the_gradient_to_the_input_has_its_kernel_turned_beforehand_on_cpus_alone():
    images, kernel = jnp.ones((2, 4, 8, 32)), jnp.ones((3, 3, 32, 8))
    module = nn.Conv(8, (3, 3), padding=1, use_bias=False, conv_general_dilated=convolution)

    def total(images):
        return jnp.sum(module.apply({"params": {"kernel": kernel}}, images))

    gradient = jax.jit(jax.grad(total)).trace(images)
    assert "optimization_barrier" in gradient.lower(lowering_platforms=("cpu",)).as_text()
    assert "optimization_barrier" not in gradient.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("shape", [FEW_PIXELS, (2, 4, 8, 32)])
def test_convolution_and_its_gradients_are_torchs(shape):
    generator = np.random.default_rng(0)
    images = generator.normal(size=shape).astype(np.float32)
    kernel = generator.normal(size=(3, 3, 32, 8)).astype(np.float32)
    module = nn.Conv(8, (3, 3), padding=1, use_bias=False, conv_general_dilated=convolution)

    def loss(kernel, images):
        return jnp.sum(jnp.sin(module.apply({"params": {"kernel": kernel}}, images)))

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(kernel, images)
    torch_images = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    torch_kernel = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    expected = torch.nn.functional.conv2d(torch_images, torch_kernel, padding=1).sin().sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    for gradient, tensor, axes in zip(
        gradients, (torch_kernel, torch_images), ((2, 3, 1, 0), (0, 2, 3, 1)), strict=True
    ):
        np.testing.assert_allclose(gradient, tensor.grad.numpy().transpose(axes), rtol=1e-3, atol=1e-4)


def test_other_convolutions_are_refused():
    with pytest.raises(ValueError, match="stride 1"):
        module = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=patches_convolution)
        module.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_pooling_is_torchs():
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(images)), expected.numpy())


def test_the_gradient_of_pooling_is_torchs():
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 3, 2, 3)).astype(np.float32)
    gradient = jax.grad(lambda images: jnp.sum(weights * max_pool_2x2(images)))(images)
    tensor = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    (torch.from_numpy(weights.transpose(0, 3, 1, 2)) * torch.nn.functional.max_pool2d(tensor, 2)).sum().backward()
    np.testing.assert_array_equal(gradient, tensor.grad.numpy().transpose(0, 2, 3, 1))
