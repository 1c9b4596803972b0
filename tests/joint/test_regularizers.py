import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.generator import toy
from tests.joint.test_train import PROGRAM, make_data
from utilgen_jax.joint.regularizers import anchor, coverage
from utilgen_jax.joint.step import first_inputs


def test_the_anchor_is_zero_where_the_adapter_changes_nothing_and_grows_with_it():
    sd, data = toy.make_toy(), make_data()
    inputs = dataclasses.replace(first_inputs(PROGRAM, sd, data), clean_latents=data.pool_latents[:1])
    adapter = PROGRAM.init_outer(sd.params, inputs, None, jax.random.key(0))["adapter"]
    key = jax.random.key(1)
    assert anchor(sd, adapter, inputs, key) == 0
    moved = [jax.tree.map(lambda leaf, s=size: leaf + s, adapter.unet_lora) for size in (0.05, 0.1)]
    small, large = (float(anchor(sd, dataclasses.replace(adapter, unet_lora=lora), inputs, key)) for lora in moved)
    assert 0 < small < large


def mmd(one, one_labels, other, other_labels):
    """Pair by pair, in NumPy."""
    features, labels = np.concatenate([one, other]), np.concatenate([one_labels, other_labels])
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / np.median(squares)) * (labels[:, None] == labels[None])
    first = np.arange(len(features)) < len(one)
    return kernel[first][:, first].mean() + kernel[~first][:, ~first].mean() - 2 * kernel[first][:, ~first].mean()


def test_coverage_is_the_discrepancy_pair_by_pair():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32) + 0.5
    one_labels, other_labels = np.arange(6) % 3, np.arange(9) % 3
    found = coverage(one, one_labels, other, other_labels)
    np.testing.assert_allclose(found, mmd(one, one_labels, other, other_labels), rtol=1e-4)
    np.testing.assert_allclose(coverage(one, one_labels, one, one_labels), 0, atol=1e-6)


def test_coverage_draws_images_towards_real_ones_of_their_class():
    real = jnp.array([[0.0, 0.0], [4.0, 0.0]])
    labels = jnp.array([0, 1])
    generated = jnp.array([[1.0, 1.0], [3.0, -1.0]])
    slope = jax.grad(coverage)(generated, labels, real, labels)
    towards = real - generated
    assert (jnp.sum(-slope * towards, -1) > 0).all()
