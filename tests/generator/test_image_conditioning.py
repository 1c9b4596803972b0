"""Augmented conditioning: each of the ten strategies does what it is called, and reaches the generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import encode_images, image_class_labels, text_condition
from utilgen_jax.generator.image_conditioning import (
    MIX_STRATEGIES,
    augmentation_keys,
    condition_on_images,
    cutmix_embeds,
    cutmix_images,
    drop_entries,
    find_mix_strategy,
    mix_image_embeds,
    mix_images,
    mixup_pairs,
    plan_sources,
)
from utilgen_jax.generator.sampling import encode_to_latents

NUMBER = 400
SEEDS = np.array([3, 8])
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32))
KEYS = augmentation_keys(np.arange(NUMBER))
ZEROS, ONES = jnp.zeros((NUMBER, 8, 8, 1)), jnp.ones((NUMBER, 8, 8, 1))


def encode(images: jax.Array) -> jax.Array:
    """A stand-in for an image encoder: the mean of each image, over 50 features that add their number."""
    return images.mean(axis=(1, 2)) + jnp.arange(50.0)


def test_mixup_is_the_lambda_mean_of_two():
    mixed, lam = jax.jit(mixup_pairs)(ONES, ZEROS, KEYS)
    np.testing.assert_allclose(mixed, np.broadcast_to(lam[:, None, None, None], mixed.shape), atol=1e-6)
    first, second = (np.random.default_rng(seed).normal(size=(NUMBER, 5)).astype(np.float32) for seed in (0, 1))
    mixed, lam = jax.jit(mixup_pairs)(first, second, KEYS)
    np.testing.assert_allclose(mixed, lam[:, None] * first + (1 - lam[:, None]) * second, atol=1e-6)
    # Beta(1, 1) is uniform.
    np.testing.assert_allclose(np.quantile(lam, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)


def test_cutmix_of_images_pastes_a_box_of_the_share_that_it_returns():
    mixed, lam = map(np.asarray, jax.jit(cutmix_images)(ONES, ZEROS, KEYS))
    assert set(np.unique(mixed)) == {0.0, 1.0}
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), lam, atol=1e-6)
    pasted = mixed[..., 0] == 0
    np.testing.assert_array_equal(
        pasted.sum(axis=(1, 2)), pasted.any(axis=1).sum(axis=1) * pasted.any(axis=2).sum(axis=1)
    )
    assert len(np.unique(lam)) > 10 and pasted.any(axis=0).all()


def test_cutmix_of_embeddings_cuts_along_the_features():
    mixed, lam = map(np.asarray, jax.jit(cutmix_embeds)(jnp.ones((NUMBER, 50)), jnp.zeros((NUMBER, 50)), KEYS))
    np.testing.assert_allclose(mixed.mean(axis=1), lam, atol=1e-6)
    runs = np.abs(np.diff(mixed, axis=1, prepend=1, append=1)).sum(axis=1)
    assert set(runs[lam < 1]) == {2}  # one run, and no row is another image's
    np.testing.assert_allclose(np.quantile(lam, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)
    assert (mixed == 0).any(axis=0).all()


def test_dropout_zeroes_its_share_and_scales_nothing_up():
    embeds = jnp.full((NUMBER, 50), 3.0)
    dropped = np.asarray(drop_entries(embeds, KEYS, 0.4))
    assert set(np.unique(dropped)) == {0.0, 3.0}
    assert (dropped == 0).mean() == pytest.approx(0.4, abs=0.02)  # 20,000 draws: six deviations
    assert len({row.tobytes() for row in dropped}) == NUMBER


@pytest.mark.slow
def test_there_are_ten_strategies_and_each_does_what_it_is_called():
    mixes = ("image", "cutmix", "mixup", "embed_cutmix", "embed_mixup")
    assert set(MIX_STRATEGIES) == {f"{mix}{end}" for mix in mixes for end in ("", "_dropout")}
    first, second, keys = ONES[:40], -ONES[:40], KEYS[:40]
    plain = {name: np.asarray(mix_image_embeds(MIX_STRATEGIES[name], encode, first, second, keys)) for name in mixes}
    features = np.arange(50.0)
    np.testing.assert_allclose(plain["image"], np.broadcast_to(1 + features, (40, 50)), rtol=1e-6)
    for name in ("cutmix", "mixup", "embed_mixup"):  # one number an image, between the two, is added to the features
        shift = plain[name] - features
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)
        assert shift.min() >= -1.0001 and shift.max() <= 1.0001 and np.ptp(shift) > 1
    assert set(np.unique(plain["embed_cutmix"] - features)) == {-1.0, 1.0}
    for name in mixes:
        dropped = np.asarray(mix_image_embeds(MIX_STRATEGIES[f"{name}_dropout"], encode, first, second, keys))
        np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, plain[name]), atol=1e-5)
        assert (dropped == 0).mean() == pytest.approx(0.4, abs=0.05)


def test_images_are_cropped_before_they_are_mixed_and_only_then():
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 8)[None, :, None, None], (40, 8, 8, 1))
    images = {name: np.asarray(mix_images(MIX_STRATEGIES[name], ramp, ramp, KEYS[:40])) for name in find_all()}
    np.testing.assert_array_equal(images["image"], ramp)
    for name in ("cutmix", "mixup"):
        assert images[name].shape == ramp.shape and np.abs(images[name]).max() <= 1 + 1e-6
        assert not np.allclose(images[name], ramp, atol=0.05)


def find_all() -> list[str]:
    return [name for name, strategy in MIX_STRATEGIES.items() if not strategy.needs_image_encoder]


@pytest.mark.slow
def test_an_image_is_mixed_the_same_way_whatever_stands_beside_it():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32))
    order = np.array([4, 0, 5, 2, 1, 3])
    first, second, keys = images, images[::-1], KEYS[:6]
    for name in ("mixup_dropout", "embed_cutmix"):
        mixed = mix_image_embeds(MIX_STRATEGIES[name], encode, first, second, keys)
        again = mix_image_embeds(MIX_STRATEGIES[name], encode, first[order], second[order], augmentation_keys(order))
        np.testing.assert_allclose(again, mixed[order], atol=1e-5)


def test_strategies_for_embeddings_need_an_image_encoder():
    assert find_mix_strategy("embed_cutmix_dropout", True) is MIX_STRATEGIES["embed_cutmix_dropout"]
    assert find_mix_strategy("mixup", False) is MIX_STRATEGIES["mixup"]
    for name in ("embed_mixup", "image_dropout"):
        with pytest.raises(InputError, match=f"'{name}'.*no image encoder.*the strategies are image, cutmix, mixup$"):
            find_mix_strategy(name, False)
    with pytest.raises(InputError, match="'flip': the strategies are image, cutmix, mixup, embed_cutmix"):
        find_mix_strategy("flip", True)


def test_sources_are_two_of_the_class_where_it_has_two():
    labels = np.array([0, 1, 2, 2, 1, 2])
    wanted = np.arange(3000) % 3
    sources = plan_sources(labels, wanted, np.random.default_rng(0))
    assert sources.shape == (3000, 2)
    np.testing.assert_array_equal(labels[sources], np.stack([wanted, wanted], axis=1))
    assert (sources[wanted == 0] == 0).all()
    assert (sources[wanted > 0, 0] != sources[wanted > 0, 1]).all()
    pairs, counts = np.unique(sources[wanted == 2], axis=0, return_counts=True)
    assert len(pairs) == 6 and counts.min() > 120  # of 1,000: every ordered pair alike
    np.testing.assert_array_equal(sources, plan_sources(labels, wanted, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="class 3 has no real image"):
        plan_sources(labels, np.array([3]), np.random.default_rng(0))


@pytest.mark.slow
def test_unclip_is_conditioned_on_the_embedding_by_all_ten_strategies(loaded):
    sd = loaded("unclip")
    plain = text_condition(sd, ["the digit one"] * 2)
    labels_of = {}
    for name in MIX_STRATEGIES:
        strategy = find_mix_strategy(name, has_image_encoder=True)
        condition, latents = condition_on_images(sd, plain, strategy, IMAGES, IMAGES[::-1], SEEDS, noise_level=5)
        assert latents is None and condition.prompt_embeds is plain.prompt_embeds
        assert condition.class_labels.shape == plain.class_labels.shape
        labels_of[name] = np.asarray(condition.class_labels)
    assert len({labels.tobytes() for labels in labels_of.values()}) == 10
    # Of one image they are those of an image prompt, which `tests/sample` compares with torch's pipeline.
    expected = image_class_labels(sd, encode_images(sd, IMAGES[:1]), SEEDS, noise_level=5)
    np.testing.assert_allclose(labels_of["image"][0], expected[0], atol=1e-5)


@pytest.mark.slow
def test_any_other_generator_starts_from_the_mixed_image(loaded):
    sd = loaded("sd15")
    plain = text_condition(sd, ["the digit one"] * 2)
    for name in ("image", "cutmix", "mixup"):
        strategy = find_mix_strategy(name, has_image_encoder=False)
        condition, latents = condition_on_images(sd, plain, strategy, IMAGES, IMAGES[::-1], SEEDS)
        assert condition is plain
        mixed = mix_images(strategy, IMAGES, IMAGES[::-1], augmentation_keys(SEEDS))
        assert name != "image" or mixed is IMAGES
        np.testing.assert_allclose(latents, encode_to_latents(sd, mixed), atol=1e-5)
