"""Prompts and noises of each picture's own, with a generator of two matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import toy
from utilgen_jax.generator.adapter import Policy, paint
from utilgen_jax.generator.golden_noise import golden_noise
from utilgen_jax.generator.per_image import InstanceRecipe, with_own_noises, with_own_prompts

RECIPE = InstanceRecipe(
    steps=6,
    learning_rate=0.1,
    sampler_steps=3,
    differentiable_steps=2,
    clip_weight=0.5,
    inversion_steps=2,
    denoising_guidance=4.0,
    inversion_guidance=1.0,
)
PAINTING = {"guidance_scale": 2.0, "scheduler": "ddim"}


def brightness(images, labels):
    """A utility: bright pictures of class 0, dark ones of the others."""
    return jnp.where(labels == 0, 1.0, -1.0) * images.mean(axis=(1, 2, 3))


def requests_with_rows(number):
    return dataclasses.replace(toy.toy_requests(number), rows=jnp.arange(number))


@pytest.mark.slow
def test_each_prompt_moves_to_where_its_picture_is_worth_more_whatever_its_batch():
    generator, params = toy.make_toy()
    requests = requests_with_rows(6)

    def improve(requests):
        return with_own_prompts(generator, params, Policy(), requests, brightness, RECIPE, **PAINTING)

    policy = improve(requests)
    before, after = (
        brightness(paint(generator, params, each, requests, num_steps=3, **PAINTING), requests.labels)
        for each in (Policy(), policy)
    )
    assert (after > before).all()
    assert np.abs(policy.prompt_offsets).max() <= 6 * 0.1 * 1.01
    alone = improve(jax.tree.map(lambda leaf: leaf[:2], requests))
    np.testing.assert_allclose(alone.prompt_offsets, policy.prompt_offsets[:2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "used"), [(4.0, 4.0), (0.0, 2.5)])
def test_noises_are_those_of_the_gap_in_guidance(given, used):
    generator, params = toy.make_toy()
    requests = requests_with_rows(4)
    recipe = dataclasses.replace(RECIPE, denoising_guidance=given)
    policy = with_own_noises(generator, params, Policy(), requests, recipe, num_steps=3, guidance_scale=2.5)
    gap = {"denoising_guidance": used, "inversion_guidance": 1.0}
    expected = golden_noise(generator, params, Policy(), requests, num_steps=3, num_calls=2, **gap)
    np.testing.assert_allclose(requests.latents + policy.noise_offsets, expected, atol=1e-5)
    assert np.abs(policy.noise_offsets).max() > 1e-3
