"""Noise by a gap of guidance: without a gap it is the noise that one started from."""

import jax
import numpy as np
import pytest
from utilgen_jax.generator.golden_noise import golden_noise

from tests.generator import toy
from utilgen_jax.generator.adapter import generate_images, init_adapter


@pytest.fixture(scope="module")
def domain():
    """(generator, params, sample inputs, fresh adapter with a row an image)."""
    generator, params = toy.make_toy()
    sample_inputs = toy.toy_requests(3)
    return generator, params, sample_inputs, init_adapter(params, sample_inputs, jax.random.key(0), num_noises=3)


@pytest.mark.parametrize("share", [1, 5])
def test_without_a_gap_the_noise_comes_back(domain, share):
    generator, params, sample_inputs, adapter = domain
    errors = []
    for steps in (10, 200):
        guidance = {"denoising_guidance": 1.0, "inversion_guidance": 1.0}
        calls = steps // share
        noise = golden_noise(generator, params, adapter, sample_inputs, num_steps=steps, num_calls=calls, **guidance)
        errors.append(np.abs(noise - sample_inputs.latents).max())
    assert errors[1] < 0.1 and 2 * errors[1] < errors[0]


def test_the_gap_leads_towards_what_guidance_wants(domain):
    """Without guidance, the new noise makes an image that is nearer to the strongly guided one than the old did."""
    generator, params, sample_inputs, adapter = domain
    gap = {"denoising_guidance": 5.5, "inversion_guidance": 1.0}
    noise = golden_noise(generator, params, adapter, sample_inputs, num_steps=50, num_calls=50, **gap)
    assert noise.shape == sample_inputs.latents.shape and np.abs(noise - sample_inputs.latents).max() > 0.1
    golden = adapter.replace(noise_offsets=noise - sample_inputs.latents)
    guided = generate_images(generator, params, adapter, sample_inputs, num_steps=50, guidance_scale=5.5)
    distances = [
        np.abs(
            generate_images(generator, params, each, sample_inputs, num_steps=50, guidance_scale=1.0) - guided
        ).mean()
        for each in (adapter, golden)
    ]
    assert distances[1] < 0.5 * distances[0]
