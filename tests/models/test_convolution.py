import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from utilgen_jax.models.convolution import max_pool_2x2, patches_convolution


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


def test_other_convolutions_are_refused():
    with pytest.raises(ValueError, match="stride 1"):
        module = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=patches_convolution)
        module.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_pooling_is_torchs():
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(images)), expected.numpy())
