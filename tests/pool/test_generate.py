"""A pool holds the images of its plan, wherever its run was cut off."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.generator.adapter import Adapter, requested_difficulty
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.sampling import initial_latents, sample
from utilgen_jax.pool import generate as pool_generation
from utilgen_jax.pool.generate import generate_batches, generate_pool
from utilgen_jax.pool.plan import plan_pool
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import PoolWriter, read_pool

SAMPLING = SamplingConfig(steps=2, guidance_scale=3.0, negative_prompt="blurred", image_size=16, batch_size=4)
CLASSES = ("zero", "one", "two")
CLASS_PROMPTS = [[f"the digit {name}"] for name in CLASSES]


def fill(sd, folder, plan):
    """Generates into the folder; returns what `on_images` heard."""
    heard = []
    generate_pool(sd, PoolWriter(folder, CLASSES), plan, Adapter(), SAMPLING, heard.append)
    return heard


@pytest.mark.slow
def test_pool_holds_the_images_of_its_plan(loaded, tmp_path):
    plan = plan_pool(CLASS_PROMPTS, 3, seed=0, round_number=0)
    assert fill(loaded("sd15"), tmp_path, plan) == [4, 8, 9]
    pool = read_pool(tmp_path, CLASSES)
    assert [dataclasses.replace(record, file_name="", class_name="") for record in pool.records] == plan
    sd = loaded("sd15")
    record = plan[5]
    condition = text_condition(sd, [record.prompt], "blurred")
    latents = initial_latents(sd.architecture, np.array([record.seed]), SAMPLING.size)
    image = sample(sd, condition, latents, SAMPLING)
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
    sd = loaded("sd15")
    plan = plan_pool(CLASS_PROMPTS, 2, seed=0, round_number=0)
    real_generate = pool_generation.generate_images

    def generate_with_a_hole(*arguments, **settings):
        return real_generate(*arguments, **settings).at[1, 3, 3, 0].set(jnp.nan)

    fill(sd, tmp_path, plan[:4])
    monkeypatch.setattr(pool_generation, "generate_images", generate_with_a_hole)
    with pytest.raises(FloatingPointError, match="image 5 holds NaN"):
        fill(sd, tmp_path, plan)
    assert len(PoolWriter(tmp_path, CLASSES)) == 4


@pytest.mark.slow
def test_a_record_without_a_prompt_is_generated_from_the_empty_one(loaded, tmp_path):
    fill(loaded("sd15"), tmp_path / "none", [PoolRecord(label=0, seed=7)])
    fill(loaded("sd15"), tmp_path / "empty", [PoolRecord(label=0, seed=7, prompt="")])
    np.testing.assert_array_equal(read_pool(tmp_path / "none").images, read_pool(tmp_path / "empty").images)


def test_each_batch_gets_its_condition_its_adapter_and_its_strength(loaded, monkeypatch):
    """Without a sampler: what `generate_images` is called with."""
    seen = []

    def record_call(sd, adapter, sample_inputs, sampling, num_differentiable_steps):
        seen.append((adapter, sample_inputs, sampling))
        return jnp.zeros((len(sample_inputs.labels), 16, 16, 3))

    monkeypatch.setattr(pool_generation, "generate_images", record_call)
    records = [
        PoolRecord(label=0, prompt="a", seed=seed, requested_difficulty=value)
        for seed, value in enumerate((0.0, 0.25, None, 0.75, 1.0, 0.5))
    ]
    sd, sampling = loaded("sd15"), dataclasses.replace(SAMPLING, strength=0.6)
    adapter = Adapter(difficulty_encoder={})
    places_seen = []

    def condition_on(condition, places):
        places_seen.append(places.tolist())
        starts_from_images = places[0] == 0
        return condition, jnp.ones((4, 8, 8, 4)) if starts_from_images else None

    def refine(adapter, sample_inputs):
        return dataclasses.replace(adapter, prompt_offsets=sample_inputs.latents[:, 0, :, 0])

    sizes = [
        len(images)
        for images in generate_batches(sd, records, adapter, sampling, condition_on=condition_on, refine=refine)
    ]
    assert sizes == [4, 2] and places_seen == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert [call[2].strength for call in seen] == [0.6, 1.0]
    assert seen[0][1].clean_latents is not None and seen[1][1].clean_latents is None
    requested = [requested_difficulty(call[0], call[1]) for call in seen]
    np.testing.assert_allclose(requested[0], [1e-4, 0.25, 0.5, 0.75], rtol=1e-3)
    np.testing.assert_allclose(requested[1], [1 - 1e-4, 0.5, 0.5, 0.5], rtol=1e-3)
    for call in seen:
        np.testing.assert_array_equal(call[0].prompt_offsets, call[1].latents[:, 0, :, 0])


def test_classes_with_adapters_of_their_own_do_not_share_a_batch(loaded, monkeypatch):
    """Without a sampler: what `generate_images` is called with."""
    seen, asked = [], []

    def record_call(sd, adapter, sample_inputs, sampling, num_differentiable_steps):
        seen.append((adapter.unet_lora["layer"]["down"], sample_inputs.labels.tolist()))
        return jnp.zeros((len(sample_inputs.labels), 16, 16, 3))

    def of_class(label):
        asked.append(label)
        return Adapter(unet_lora={"layer": {"down": label}})

    monkeypatch.setattr(pool_generation, "generate_images", record_call)
    records = [PoolRecord(label=label, seed=seed) for seed, label in enumerate((0, 0, 0, 0, 0, 1, 2, 2))]
    batches = generate_batches(loaded("sd15"), records, of_class, SAMPLING, first=1)
    assert [len(images) for images in batches] == [4, 1, 2]
    assert seen == [(0, [0] * 4), (1, [1] * 4), (2, [2] * 4)] and asked == [0, 1, 2]
    seen.clear()
    assert [len(images) for images in generate_batches(loaded("sd15"), records, of_class, SAMPLING)] == [4, 1, 1, 2]
    assert seen == [(0, [0] * 4), (0, [0] * 4), (1, [1] * 4), (2, [2] * 4)]
