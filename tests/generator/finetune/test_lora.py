"""Fitting the generator to images by the denoising loss, on a generator of two matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cut_off import assert_goes_on
from tests.generator.toy import CHANNELS, CLASSES, SIDE, WIDTH, WORDS, make_toy, normal
from utilgen_jax.checkpoints import tokenize
from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.generator.adapter import Adapter, adapter_loras, with_text_encoder_lora
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet, adapter_loss
from utilgen_jax.generator.finetune.lora import train_lora
from utilgen_jax.runtime.training_loop import TrainingLoop

SD = make_toy()
EMBEDS = normal(1, CLASSES, WORDS, WIDTH)
CONFIG = LoraConfig(steps=40, batch_size=8, prior_fraction=0.0, learning_rate=0.05, rank=2, snr_gamma=0.0)
KEY = jax.random.key(0)


def images(number=12, seed=0, centre=0.0, difficulties=None):
    latents = normal(seed, number, SIDE, SIDE, CHANNELS, scale=0.3) + centre
    return DenoisingSet(latents, jnp.arange(number) % CLASSES, difficulties)


def fit(learn_from, prior=None, key=KEY, loop=None, zero_token=False, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    prior = images(6, seed=5, difficulties=learn_from.difficulties) if prior is None else prior
    return train_lora(SD, EMBEDS, learn_from, prior, config, key, loop or TrainingLoop(), zero_token)


def loss(adapter, batch, seed=7):
    """Over many timesteps and noises."""
    repeated = batch.take(jnp.tile(jnp.arange(len(batch.labels)), 40))
    return float(adapter_loss(SD, adapter, EMBEDS, repeated, jax.random.key(seed)).mean())


def test_without_an_adapter_it_is_the_checkpoints_denoising_loss():
    batch = images()

    def denoise(latents, timesteps):
        return SD.unet.apply({"params": SD.params["unet"]}, latents, timesteps, EMBEDS[batch.labels])

    expected = denoising_loss(denoise, SD.schedule, batch.latents, KEY)
    np.testing.assert_allclose(adapter_loss(SD, Adapter(), EMBEDS, batch, KEY), expected, rtol=1e-6)


@pytest.mark.slow
def test_it_learns_the_images_and_starts_from_the_checkpoint():
    batch, seen = images(centre=1.0), []
    adapter = fit(batch, loop=TrainingLoop(lambda step, value: seen.append((step, float(value)))))
    assert [step for step, _ in seen] == list(range(1, 41))
    assert adapter.difficulty_encoder is None
    assert loss(adapter, batch) < 0.8 * loss(Adapter(), batch)
    untouched = fit(batch, steps=1, learning_rate=0.0)
    assert loss(untouched, batch) == pytest.approx(loss(Adapter(), batch), rel=1e-6)


@pytest.mark.slow
def test_prior_images_keep_what_the_generator_knew():
    batch, prior = images(centre=1.5), images(seed=3, centre=-1.5)
    alone, beside = fit(batch, prior), fit(batch, prior, prior_fraction=0.5)
    assert loss(beside, prior) < loss(alone, prior)
    assert loss(alone, batch) < loss(beside, batch)


def test_a_token_that_starts_at_zero_is_the_same_for_all_difficulties():
    easy, hard = (images(difficulties=jnp.full(12, value)) for value in (0.0, 1.0))
    start = {"steps": 1, "learning_rate": 1e-12}
    zero, random = fit(easy, zero_token=True, **start), fit(easy, **start)
    assert loss(zero, easy) == pytest.approx(loss(zero, hard), rel=1e-6)
    assert loss(random, easy) != pytest.approx(loss(random, hard), rel=1e-6)
    learnt = fit(easy, zero_token=True, steps=5)
    assert float(jnp.abs(learnt.difficulty_encoder["linear_3"]["kernel"]).max()) > 0


@pytest.mark.slow
def test_where_difficulty_is_known_its_token_is_learnt():
    hard = jnp.asarray(np.arange(12) % 2, jnp.float32)
    batch = images(difficulties=hard)
    batch = dataclasses.replace(batch, latents=batch.latents + (2 * hard - 1)[:, None, None, None])
    adapter = fit(batch, batch, steps=80, learning_rate=0.005)
    confused = dataclasses.replace(batch, difficulties=1 - hard)
    assert loss(adapter, batch) < 0.9 * loss(adapter, confused)


def test_only_the_key_decides():
    first, again, other = (fit(images(), key=jax.random.key(seed), steps=3) for seed in (0, 0, 1))
    leaves, other_leaves = jax.tree.leaves(first), jax.tree.leaves(other)
    for leaf, same in zip(leaves, jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(leaf, same)
    assert any((leaf != changed).any() for leaf, changed in zip(leaves, other_leaves, strict=True))


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.5, 4), (0.95, 7)])
def test_a_batch_has_one_new_image_at_least(fraction, expected):
    assert dataclasses.replace(CONFIG, prior_fraction=fraction).num_prior == expected


def test_epochs_come_to_steps_of_the_images_that_are_not_the_generators_own():
    config = LoraConfig(steps=7, epochs=10, batch_size=8, prior_fraction=0.5)
    assert config.of_images(10).steps == 25 and config.of_images(11).steps == 28
    assert dataclasses.replace(config, epochs=0).of_images(10).steps == 7
    assert config.of_images(10).of_images(99).steps == 25


@pytest.mark.slow
def test_the_text_encoder_has_a_lora_of_its_own_that_prompts_are_encoded_with(loaded):
    sd = loaded("sd15")
    ids = jnp.asarray(tokenize(sd.tokenizer, ["a cat", "a dog"]))
    latents = normal(0, 4, 4, 4, 4)
    batch = DenoisingSet(latents, jnp.arange(4) % 2)
    config = dataclasses.replace(CONFIG, steps=2, text_encoder_rank=3)
    adapter = train_lora(sd, ids, batch, None, config, KEY, TrainingLoop())
    assert all(leaf.any() for leaf in jax.tree.leaves(adapter.text_encoder_lora))
    expected = encode_prompts(sd, ["a cat"], adapter_loras(adapter))
    found = encode_prompts(with_text_encoder_lora(sd, adapter), ["a cat"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, encode_prompts(sd, ["a cat"]), atol=1e-4)
    assert with_text_encoder_lora(sd, Adapter()) is sd


def test_a_training_that_was_cut_off_goes_on_with_the_same_bits(tmp_path):
    batch = images(difficulties=jnp.linspace(0.1, 0.9, 12))
    assert_goes_on(lambda loop: fit(batch, loop=loop, steps=4), tmp_path, cut_after=3)
