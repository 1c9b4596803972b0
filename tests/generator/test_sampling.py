"""An image follows from its prompt and seed alone: not from its batch, its device, or where a run broke off."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import read_architecture
from utilgen_jax.generator.sampling import (
    check_finite_images,
    decode_latents,
    encode_to_latents,
    initial_latents,
    sample,
    step_keys,
)
from utilgen_jax.runtime import sharding

SAMPLING = SamplingConfig(steps=2, guidance_scale=3.0, image_size=16)
BATCH = 4
PROMPTS = [f"the digit {name}" for name in ("zero", "one", "two")]


def generate_images(sd, prompts, seeds):
    """With a sampler that draws noise at every step."""
    sampling = dataclasses.replace(SAMPLING, scheduler="ddpm")
    latents, keys = initial_latents(sd.architecture, np.array(seeds), sampling.size), step_keys(np.array(seeds))
    return sample(sd, text_condition(sd, prompts), latents, sampling, keys=keys)


def test_latents_are_those_of_each_seed(loaded):
    sd = loaded("sd15")
    latents = initial_latents(sd.architecture, np.array([5, 2**31 - 1]), (24, 20))
    expected = [jax.random.normal(jax.random.key(seed), latents.shape[1:]) for seed in (5, 2**31 - 1)]
    np.testing.assert_array_equal(latents, expected)
    assert np.abs(initial_latents(sd.architecture, [5 + 2**32], (24, 20)) - latents[:1]).max() > 0.5
    assert latents.shape == (2, 12, 10, 4) and latents.dtype == jnp.float32
    for row, seed in zip(latents, (5, 2**31 - 1), strict=True):
        np.testing.assert_array_equal(row, jax.random.normal(jax.random.key(seed), (12, 10, 4)))


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
    sd = loaded("sd15")
    expected = [
        generate_images(loaded("sd15"), prompts[rows], seeds[rows]) for rows in (slice(0, BATCH), slice(BATCH, 8))
    ]
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        images = generate_images(sd.replace(params=sharding.shard_params(sd.params, mesh)), prompts, seeds)
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {1}  # the batch was split, one each
    np.testing.assert_allclose(images, np.concatenate(expected), atol=1e-4)


def test_decoding_undoes_the_scaling_factor_and_clips(loaded):
    sd = loaded("sd15")
    latents = 0.05 * jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    decode = jax.jit(decode_latents)
    images = jax.jit(partial(sd.vae.apply, method="decode"))({"params": sd.params["vae"]}, latents)
    decoded = decode(sd, latents * 0.18215)
    np.testing.assert_allclose(decoded, np.clip(images, -1, 1), atol=1e-5)
    loud = decode(sd, 1e3 * latents)
    assert loud.min() >= -1.0 and loud.max() <= 1.0


@pytest.mark.slow
def test_encoding_can_draw_from_the_posterior_and_scales_it(loaded):
    sd = loaded("sd15")
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
    encode = jax.jit(partial(sd.vae.apply, method="encode"))
    mean, log_variance = jnp.split(encode({"params": sd.params["vae"]}, images), 2, axis=-1)
    keys = step_keys(np.array([3, 4]))
    noise = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    expected = (mean + jnp.exp(log_variance / 2) * noise) * 0.18215
    np.testing.assert_allclose(encode_to_latents(sd, images, keys), expected, atol=1e-5)


def test_only_a_image_can_be_started_from_half_way(loaded):
    sd = loaded("sd15")
    condition = text_condition(sd, PROMPTS[:1])
    with pytest.raises(InputError, match="strength=0.5 needs clean_latents"):
        sample(sd, condition, jnp.zeros((1, 8, 8, 4)), dataclasses.replace(SAMPLING, strength=0.5))


def test_images_that_are_not_finite_are_named(checkpoint):
    full, half = (read_architecture(checkpoint("sd15"), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    images = np.zeros((3, 2, 2, 3), np.float32)
    check_finite_images(images, half)
    images[1, 0, 1, 2] = np.inf
    with pytest.raises(FloatingPointError, match="image 5 holds NaN or infinity. Half precision.*compute in float32"):
        check_finite_images(images, half, first=4)
    with pytest.raises(InputError, match="image 1 holds NaN or infinity. All was computed in float32: the weights"):
        check_finite_images(images, full, error=InputError)
