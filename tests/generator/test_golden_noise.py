"""Noise by a gap of guidance: without a gap it is the noise that one started from."""

import jax
import numpy as np
import pytest

from tests.generator import toy
from utilgen_jax.generator.adapter import init_policy, paint
from utilgen_jax.generator.golden_noise import golden_noise


@pytest.fixture(scope="module")
def world():
    """(generator, params, requests, fresh policy with a row a picture)."""
    generator, params = toy.make_toy()
    requests = toy.toy_requests(3)
    return generator, params, requests, init_policy(params, requests, jax.random.key(0), num_noises=3)


@pytest.mark.parametrize("share", [1, 5])
def test_without_a_gap_the_noise_comes_back(world, share):
    generator, params, requests, policy = world
    errors = []
    for steps in (10, 200):
        guidance = {"denoising_guidance": 1.0, "inversion_guidance": 1.0}
        calls = steps // share
        noise = golden_noise(generator, params, policy, requests, num_steps=steps, num_calls=calls, **guidance)
        errors.append(np.abs(noise - requests.latents).max())
    assert errors[1] < 0.1 and 2 * errors[1] < errors[0]


def test_the_gap_leads_towards_what_guidance_wants(world):
    """Without guidance, the new noise makes a picture that is nearer to the strongly guided one than the old did."""
    generator, params, requests, policy = world
    gap = {"denoising_guidance": 5.5, "inversion_guidance": 1.0}
    noise = golden_noise(generator, params, policy, requests, num_steps=50, num_calls=50, **gap)
    assert noise.shape == requests.latents.shape and np.abs(noise - requests.latents).max() > 0.1
    golden = policy.replace(noise_offsets=noise - requests.latents)
    guided = paint(generator, params, policy, requests, num_steps=50, guidance_scale=5.5)
    distances = [
        np.abs(paint(generator, params, each, requests, num_steps=50, guidance_scale=1.0) - guided).mean()
        for each in (policy, golden)
    ]
    assert distances[1] < 0.5 * distances[0]
