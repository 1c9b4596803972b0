"""Prompts and noises of each image's own, with a generator of two matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from utilgen_jax.generator.golden_noise import golden_noise

from tests.generator import toy
from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.per_image import PerImageConfig, add_golden_noise, optimize_prompts

CONFIG = PerImageConfig(
    steps=6,
    learning_rate=0.1,
    sampler_steps=3,
    differentiable_steps=2,
    clip_weight=0.5,
    inversion_steps=2,
    denoising_guidance=4.0,
    inversion_guidance=1.0,
)
GENERATING = {"guidance_scale": 2.0, "scheduler": "ddim"}


def brightness(images, labels):
    """A utility: bright images of class 0, dark ones of the others."""
    return jnp.where(labels == 0, 1.0, -1.0) * images.mean(axis=(1, 2, 3))


def requests_with_rows(number):
    return dataclasses.replace(toy.toy_requests(number), rows=jnp.arange(number))


@pytest.mark.slow
def test_each_prompt_moves_to_where_its_image_is_worth_more_whatever_its_batch():
    generator, params = toy.make_toy()
    sample_inputs = requests_with_rows(6)

    def improve(sample_inputs):
        return optimize_prompts(generator, params, Adapter(), sample_inputs, brightness, CONFIG, **GENERATING)

    adapter = improve(sample_inputs)
    before, after = (
        brightness(
            generate_images(generator, params, each, sample_inputs, num_steps=3, **GENERATING), sample_inputs.labels
        )
        for each in (Adapter(), adapter)
    )
    assert (after > before).all()
    assert np.abs(adapter.prompt_offsets).max() <= 6 * 0.1 * 1.01
    alone = improve(jax.tree.map(lambda leaf: leaf[:2], sample_inputs))
    np.testing.assert_allclose(alone.prompt_offsets, adapter.prompt_offsets[:2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "used"), [(4.0, 4.0), (0.0, 2.5)])
def test_noises_are_those_of_the_gap_in_guidance(given, used):
    generator, params = toy.make_toy()
    sample_inputs = requests_with_rows(4)
    config = dataclasses.replace(CONFIG, denoising_guidance=given)
    adapter = add_golden_noise(generator, params, Adapter(), sample_inputs, config, num_steps=3, guidance_scale=2.5)
    gap = {"denoising_guidance": used, "inversion_guidance": 1.0}
    expected = golden_noise(generator, params, Adapter(), sample_inputs, num_steps=3, num_calls=2, **gap)
    np.testing.assert_allclose(sample_inputs.latents + adapter.noise_offsets, expected, atol=1e-5)
    assert np.abs(adapter.noise_offsets).max() > 1e-3
