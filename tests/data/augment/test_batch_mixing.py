"""Mixup and CutMix against their papers' formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from utilgen_jax.data.augment.batch_mixing import MIXINGS, cut_mask

TARGETS = np.eye(6, dtype=np.float32)
IMAGES = np.random.default_rng(0).normal(size=(6, 9, 7, 3)).astype(np.float32)


def partners_of(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns partners and their shares from mixed one-hot targets of distinct classes."""
    own = np.diag(targets)
    others = targets - np.diag(own)
    is_alone = others.max(axis=1) == 0
    return np.where(is_alone, np.arange(len(targets)), others.argmax(axis=1)), np.where(is_alone, 0, others.max(axis=1))


KEYS = jax.random.split(jax.random.key(0), 60)
# Jitted once: the draws from Beta take seconds to compile.
BY_KEYS = {name: jax.jit(jax.vmap(mixing, in_axes=(None, None, 0, None))) for name, mixing in MIXINGS.items()}


def run(name: str, alpha: float, targets: np.ndarray = TARGETS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and targets, mixed by each of KEYS."""
    mixed = BY_KEYS[name](jnp.asarray(IMAGES), jnp.asarray(targets), KEYS, alpha)
    return list(zip(*map(np.asarray, mixed), strict=True))


def test_mixup_mixes_images_and_targets_by_one_lambda():
    lambdas = []
    for images, targets in run("mixup", 0.4):
        partner, share = partners_of(targets)
        assert sorted(partner) == list(range(6))  # a permutation
        lam = 1 - share.max()
        np.testing.assert_allclose(images, lam * IMAGES + (1 - lam) * IMAGES[partner], atol=1e-6)
        np.testing.assert_allclose(targets, lam * TARGETS + (1 - lam) * TARGETS[partner], atol=1e-6)
        lambdas.append(lam)
    assert np.std(lambdas) > 0.2


def test_cutmix_pastes_a_box_and_mixes_targets_by_its_area():
    shares = []
    for images, targets in run("cutmix", 1.0):
        partner, _ = partners_of(targets)
        assert sorted(partner) == list(range(6))
        is_pasted = (images != IMAGES).all(axis=-1)[partner != np.arange(6)]
        mask = is_pasted[0] if len(is_pasted) else np.zeros(IMAGES.shape[1:3], bool)
        assert (is_pasted == mask).all()
        assert mask.sum() == mask.any(axis=0).sum() * mask.any(axis=1).sum()  # a box
        np.testing.assert_array_equal(images, np.where(mask[..., None], IMAGES[partner], IMAGES))
        np.testing.assert_allclose(targets, (1 - mask.mean()) * TARGETS + mask.mean() * TARGETS[partner], atol=1e-6)
        shares.append(mask.mean())
    assert np.std(shares) > 0.1


def test_the_box_has_the_images_proportions_and_the_rest_of_lambda_for_area():
    keys = jax.random.split(jax.random.key(0), 300)
    cut = jax.jit(jax.vmap(lambda key, lam: cut_mask(key, lam, 40, 20), in_axes=(0, None)))
    for lam in (0.0, 0.36, 0.75, 1.0):
        masks = np.asarray(cut(keys, lam))
        height, width = round(40 * np.sqrt(1 - lam)), round(20 * np.sqrt(1 - lam))
        heights, widths = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
        assert heights.max() == height and widths.max() == width
        # Without clipping the share is 1 - lambda.
        whole = (heights == height) & (widths == width)
        np.testing.assert_allclose(masks[whole].mean(axis=(1, 2)), 1 - lam, atol=1e-6)
    # The centre is uniform. A box of half the side is clipped at each end with probability 1/4, by 1/4 of its length on
    # average.
    halves = np.asarray(cut(keys, 0.75)).any(axis=2).sum(axis=1)
    assert halves.mean() == pytest.approx(20 * (1 - 2 * 0.25 * 0.25), abs=0.5)


def test_lambda_follows_beta():
    for alpha, other in ((0.3, 3.0), (3.0, 0.3)):
        lambdas = [1 - partners_of(targets)[1].max() for _, targets in run("mixup", alpha)]
        assert stats.kstest(lambdas, stats.beta(alpha, alpha).cdf).pvalue > 0.01
        assert stats.kstest(lambdas, stats.beta(other, other).cdf).pvalue < 1e-4


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_rows_of_targets_may_carry_weights(name):
    weights = np.array([0.5, 2.0, 1.0, 0.0, 3.0, 1.0], np.float32)
    for (_, plain), (_, weighted) in zip(run(name, 1.0), run(name, 1.0, weights * TARGETS), strict=True):
        np.testing.assert_allclose(weighted, plain * weights, atol=1e-6)  # here column k comes from row k alone


def test_the_table_has_an_entry_that_mixes_nothing():
    images, targets = MIXINGS["none"](IMAGES, TARGETS, jax.random.key(0), 1.0)
    assert images is IMAGES and targets is TARGETS
