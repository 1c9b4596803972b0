"""DDIM against torch's DDIMScheduler.step with the same made-up denoiser, and guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from utilgen_jax.diffusion.samplers import ddim_sample, guided
from utilgen_jax.diffusion.schedules import load_schedule

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
# Stable Diffusion 1.5 and 2.1 as published, then the others.
CONFIGS = {
    "sd15": {"steps_offset": 1, "set_alpha_to_one": False},
    "sd21": {"steps_offset": 1, "set_alpha_to_one": False, "prediction_type": "v_prediction"},
    "trailing": {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "set_alpha_to_one": False},
    "zero snr": {
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
    "linspace": {"timestep_spacing": "linspace"},
    "sample": {"prediction_type": "sample"},
}


def fake_model(latents, timestep, tanh):
    """Depends on latents and timestep; the same formula in both frameworks."""
    return tanh(0.7 * latents + 0.001 * timestep) - 0.1


@pytest.mark.parametrize("num_steps", [1, 10, 33])
@pytest.mark.parametrize("name", CONFIGS)
def test_ddim_makes_the_steps_of_diffusers(name, num_steps):
    config = CONFIG | CONFIGS[name]
    start = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(num_steps)
    expected = torch.tensor(start)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(fake_model(expected, timestep, torch.tanh), timestep, expected).prev_sample

    def denoise(latents, timestep):
        assert timestep.shape == () and timestep.dtype == jnp.int32
        return fake_model(latents, timestep, jnp.tanh)

    latents = ddim_sample(denoise, load_schedule(config), jnp.asarray(start), num_steps)
    assert latents.dtype == jnp.float32
    np.testing.assert_allclose(latents, expected.numpy(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_denoiser_that_knows_the_clean_latents_ends_there():
    schedule = load_schedule(CONFIG | {"prediction_type": "sample"})
    clean = jnp.full((1, 2, 2, 4), 0.3)
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    np.testing.assert_allclose(ddim_sample(lambda *_: clean, schedule, noise, 25), clean, atol=1e-6)


def test_latents_stay_float32_whatever_the_denoiser_computes_in():
    schedule = load_schedule(CONFIG)
    latents = ddim_sample(lambda latents, _: latents.astype(jnp.bfloat16), schedule, jnp.ones((1, 2, 2, 4)), 3)
    assert latents.dtype == jnp.float32


def apply_fake_unet(latents, timesteps, embeds, labels):
    """Linear in the condition, so that guidance can be written down."""
    assert len(latents) == len(timesteps) == len(embeds)
    output = latents * 0.5 + timesteps[:, None, None, None] + embeds.mean((1, 2))[:, None, None, None]
    return output if labels is None else output + labels.sum(1)[:, None, None, None]


@pytest.mark.parametrize("with_labels", [False, True])
def test_guidance_moves_from_the_unconditional_to_the_conditional_prediction(with_labels):
    rng = np.random.default_rng(2)
    latents, embeds, negative = (jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 2, 4), (3, 5, 6), (3, 5, 6)))
    labels = jnp.asarray(rng.normal(size=(3, 8))) if with_labels else None
    timesteps = jnp.full((3,), 7)
    conditional = apply_fake_unet(latents, timesteps, embeds, labels)
    # As in StableUnCLIPImg2ImgPipeline, the unconditional branch sees an image embedding of zeros.
    unconditional = apply_fake_unet(latents, timesteps, negative, None)
    denoise = guided(apply_fake_unet, embeds, negative, labels, 5.0)
    expected = unconditional + 5.0 * (conditional - unconditional)
    np.testing.assert_allclose(denoise(latents, jnp.int32(7)), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_unconditional_branch_is_not_computed(scale):
    sizes = []

    def apply_unet(latents, timesteps, embeds, labels):
        sizes.append(len(latents))
        return apply_fake_unet(latents, timesteps, embeds, labels)

    latents, embeds = jnp.ones((3, 2, 2, 4)), jnp.ones((3, 5, 6))
    denoise = guided(apply_unet, embeds, jnp.full_like(embeds, jnp.nan), None, scale)
    expected = apply_fake_unet(latents, jnp.full((3,), 7), embeds, None)
    np.testing.assert_array_equal(denoise(latents, jnp.int32(7)), expected)
    assert sizes == [3]
