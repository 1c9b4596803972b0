"""An image follows from its prompt and seed alone: not from its batch, its device, or where a run broke off."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.sampling import decode_latents, encode_to_latents, initial_latents, sample, step_keys
from utilgen_jax.pool import generate as pool_generation
from utilgen_jax.pool.generate import SamplingConfig, generate_pool, plan_pool
from utilgen_jax.pool.storage import PoolRecord, PoolWriter, read_pool
from utilgen_jax.runtime import sharding

SETTINGS = {"num_steps": 2, "guidance_scale": 3.0}
BATCH = 4
CONFIG = SamplingConfig(
    scheduler="ddim", steps=2, guidance_scale=3.0, negative_prompt="blurred", image_size=16, batch_size=BATCH
)
CLASSES = ("zero", "one", "two")
PROMPTS = [f"the digit {name}" for name in CLASSES]
CLASS_PROMPTS = [[prompt] for prompt in PROMPTS]


def generate_images(loaded, prompts, seeds):
    """With a sampler that draws noise at every step."""
    generator, params = loaded
    latents, keys = initial_latents(generator, np.array(seeds), 16), step_keys(np.array(seeds))
    condition = text_condition(generator, params, prompts)
    return sample(generator, params, condition, latents, scheduler="ddpm", keys=keys, **SETTINGS)


def test_latents_are_those_of_each_seed(loaded):
    generator, _ = loaded("sd15")
    latents = initial_latents(generator, np.array([5, 2**31 - 1]), 24)
    assert latents.shape == (2, 12, 12, 4) and latents.dtype == jnp.float32
    for row, seed in zip(latents, (5, 2**31 - 1), strict=True):
        np.testing.assert_array_equal(row, jax.random.normal(jax.random.key(seed), (12, 12, 4)))


@pytest.mark.slow
def test_a_image_does_not_depend_on_its_batch(loaded):
    prompts, seeds = [PROMPTS[i % 3] for i in range(BATCH)], [11, 12, 13, 14]
    together = generate_images(loaded("sd15"), prompts, seeds)
    assert together.shape == (BATCH, 16, 16, 3) and together.dtype == jnp.float32
    alone = generate_images(loaded("sd15"), [prompts[3]], [seeds[3]])
    np.testing.assert_allclose(together[3], alone[0], atol=1e-5)
    assert np.abs(together[3] - together[0]).max() > 0.05  # same prompt, another seed


@pytest.mark.slow
def test_eight_devices_generate_the_same_images(loaded):
    prompts, seeds = [PROMPTS[i % 3] for i in range(8)], list(range(8))
    generator, params = loaded("sd15")
    expected = [
        generate_images(loaded("sd15"), prompts[rows], seeds[rows]) for rows in (slice(0, BATCH), slice(BATCH, 8))
    ]
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        images = generate_images((generator, sharding.shard_params(params, mesh)), prompts, seeds)
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {1}  # the batch was split, one each
    np.testing.assert_allclose(images, np.concatenate(expected), atol=1e-4)


def test_decoding_undoes_the_scaling_factor_and_clips(loaded):
    generator, params = loaded("sd15")
    latents = 0.05 * jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    decode = jax.jit(partial(decode_latents, generator))
    images = jax.jit(partial(generator.vae.apply, method="decode"))({"params": params["vae"]}, latents)
    decoded = decode(params, latents * 0.18215)
    np.testing.assert_allclose(decoded, np.clip(images, -1, 1), atol=1e-5)
    loud = decode(params, 1e3 * latents)
    assert loud.min() >= -1.0 and loud.max() <= 1.0


@pytest.mark.slow
def test_encoding_can_draw_from_the_posterior_and_scales_it(loaded):
    generator, params = loaded("sd15")
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
    encode = jax.jit(partial(generator.vae.apply, method="encode"))
    mean, log_variance = jnp.split(encode({"params": params["vae"]}, images), 2, axis=-1)
    keys = step_keys(np.array([3, 4]))
    noise = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    expected = (mean + jnp.exp(log_variance / 2) * noise) * 0.18215
    np.testing.assert_allclose(encode_to_latents(generator, params, images, keys), expected, atol=1e-5)


def test_only_a_image_can_be_started_from_half_way(loaded):
    generator, params = loaded("sd15")
    condition = text_condition(generator, params, PROMPTS[:1])
    with pytest.raises(InputError, match="strength=0.5 needs clean_latents"):
        sample(generator, params, condition, jnp.zeros((1, 8, 8, 4)), strength=0.5, **SETTINGS)


def test_plan_takes_classes_in_turn_and_a_shorter_plan_begins_a_longer_one():
    plan = plan_pool(CLASS_PROMPTS, 40, seed=3, round_number=0)
    assert [record.label for record in plan] == [0, 1, 2] * 40
    assert all(record.prompt == PROMPTS[record.label] and record.round == 0 for record in plan)
    assert plan[:30] == plan_pool(CLASS_PROMPTS, 10, seed=3, round_number=0)
    seeds = [record.seed for record in plan]
    assert len(set(seeds)) == 120 and 0 <= min(seeds) and max(seeds) < 2**31
    assert plan == plan_pool(CLASS_PROMPTS, 40, seed=3, round_number=0)
    for other in (plan_pool(CLASS_PROMPTS, 40, 4, 0), plan_pool(CLASS_PROMPTS, 40, 3, 1)):
        assert not set(seeds) & {record.seed for record in other}


def test_a_plan_takes_a_classs_prompts_in_turn_and_asks_for_difficulties():
    prompts = (("a", "b"), ("c",))
    plan = plan_pool(prompts, 500, seed=3, round_number=0, difficulty=(0.5, 0.3))
    assert [record.prompt for record in plan[:6]] == ["a", "c", "b", "c", "a", "c"]
    asked = np.array([record.requested_difficulty for record in plan])
    assert asked.min() == 0 and asked.max() == 1
    inside = scipy.stats.norm(0.5, 0.3).cdf([0.2, 0.8])
    assert np.mean((asked > 0.2) & (asked < 0.8)) == pytest.approx(inside[1] - inside[0], abs=0.05)
    # What is asked of an image changes nothing else of it, and follows from its place.
    plain = [dataclasses.replace(record, requested_difficulty=None) for record in plan]
    assert plain == plan_pool(prompts, 500, seed=3, round_number=0)
    assert plan[:20] == plan_pool(prompts, 10, seed=3, round_number=0, difficulty=(0.5, 0.3))


def test_a_plan_may_have_another_number_for_each_class():
    counts = (2, 0, 5)
    plan = plan_pool(CLASS_PROMPTS, counts, seed=3, round_number=0)
    assert [record.label for record in plan] == [0, 2, 0, 2, 2, 2, 2]
    even = plan_pool(CLASS_PROMPTS, 5, seed=3, round_number=0)
    for label, count in enumerate(counts):
        assert [r for r in plan if r.label == label] == [r for r in even if r.label == label][:count]


def fill(loaded, folder, plan):
    """Generates into the folder; returns what `on_images` heard."""
    heard = []
    writer = PoolWriter(folder, CLASSES)
    generate_pool(*loaded, writer, plan, Adapter(), CONFIG, heard.append)
    return heard


@pytest.mark.slow
def test_pool_holds_the_images_of_its_plan(loaded, tmp_path):
    plan = plan_pool(CLASS_PROMPTS, 3, seed=0, round_number=0)
    assert fill(loaded("sd15"), tmp_path, plan) == [4, 8, 9]
    pool = read_pool(tmp_path, CLASSES)
    assert [dataclasses.replace(record, file_name="", class_name="") for record in pool.records] == plan
    generator, params = loaded("sd15")
    record = plan[5]
    condition = text_condition(generator, params, [record.prompt], "blurred")
    image = sample(generator, params, condition, initial_latents(generator, np.array([record.seed]), 16), **SETTINGS)
    expected = (np.asarray(image[0]) + 1) * 127.5
    np.testing.assert_allclose(pool.images[5], expected, atol=0.51)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 6])  # between two batches, and in the middle of writing one
def test_a_pool_that_was_cut_off_is_completed_exactly(loaded, tmp_path, cut):
    plan = plan_pool(CLASS_PROMPTS, 3, seed=0, round_number=0)
    fill(loaded("sd15"), tmp_path / "whole", plan)
    fill(loaded("sd15"), tmp_path / "broken", plan[:4])
    if cut == 6:
        # Six records reached the disk; the batch of the plan's rows 4..7 did not get to its end.
        fill(loaded("sd15"), tmp_path / "broken", plan[:6])
    assert fill(loaded("sd15"), tmp_path / "broken", plan)[-1] == 9
    whole, completed = read_pool(tmp_path / "whole"), read_pool(tmp_path / "broken")
    assert completed.records == whole.records
    np.testing.assert_array_equal(completed.images, whole.images)
    assert fill(loaded("sd15"), tmp_path / "broken", plan) == []  # nothing left to do


@pytest.mark.slow
def test_a_image_that_is_not_finite_stops_the_pool_before_it_is_written(loaded, tmp_path, monkeypatch):
    generator, params = loaded("sd15")
    plan = plan_pool(CLASS_PROMPTS, 2, seed=0, round_number=0)
    real_generate = pool_generation.generate_images

    def generate_with_a_hole(*arguments, **settings):
        return real_generate(*arguments, **settings).at[1, 3, 3, 0].set(jnp.nan)

    fill((generator, params), tmp_path, plan[:4])
    monkeypatch.setattr(pool_generation, "generate_images", generate_with_a_hole)
    with pytest.raises(FloatingPointError, match="image 5 of the pool holds NaN"):
        fill((generator, params), tmp_path, plan)
    assert len(PoolWriter(tmp_path, CLASSES)) == 4


@pytest.mark.slow
def test_a_record_without_a_prompt_is_generated_from_the_empty_one(loaded, tmp_path):
    fill(loaded("sd15"), tmp_path / "none", [PoolRecord(label=0, seed=7)])
    fill(loaded("sd15"), tmp_path / "empty", [PoolRecord(label=0, seed=7, prompt="")])
    np.testing.assert_array_equal(read_pool(tmp_path / "none").images, read_pool(tmp_path / "empty").images)
