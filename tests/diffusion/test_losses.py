"""The denoising loss and its weights, and Diffusion-DPO, against torch and diffusers and the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from utilgen_jax.diffusion.losses import denoising_loss, diffusion_dpo_loss, min_snr_weights
from utilgen_jax.diffusion.schedules import PREDICTION_TYPES, add_noise, load_schedule

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
LATENTS = jax.random.normal(jax.random.key(5), (6, 4, 4, 4))


def schedule_for(kind):
    return load_schedule(CONFIG | {"prediction_type": kind})


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(kind, gamma):
    # As in diffusers' examples/text_to_image/train_text_to_image.py, extended to a prediction of the clean latents.
    timesteps = np.array([0, 10, 100, 400, 700, 999])
    snr = compute_snr(DDPMScheduler(**CONFIG), torch.tensor(timesteps)).numpy()
    expected = np.minimum(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[kind]
    assert snr.min() < 1.0 and snr.max() > 5.0  # both sides of the minimum are seen
    np.testing.assert_allclose(min_snr_weights(schedule_for(kind), timesteps, gamma), expected, rtol=1e-3)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_min_snr_weights_are_finite_for_pure_noise(kind):
    schedule = load_schedule(CONFIG | {"prediction_type": kind, "rescale_betas_zero_snr": True})
    np.testing.assert_array_equal(min_snr_weights(schedule, jnp.array([999]), 5.0), [0.0])


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_perfect_prediction_has_no_loss(kind):
    schedule = schedule_for(kind)

    def denoise(noisy, timesteps):
        alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
        noise = (noisy - jnp.sqrt(alpha) * LATENTS) / jnp.sqrt(1 - alpha)
        velocity = jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * LATENTS
        return {"epsilon": noise, "v_prediction": velocity, "sample": LATENTS}[kind]

    loss = denoising_loss(denoise, schedule, LATENTS, jax.random.key(0))
    assert loss.shape == (6,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)


def test_the_loss_is_the_mean_squared_error_of_each_sample_times_its_weight():
    schedule = schedule_for("epsilon")
    seen = {}

    def denoise(noisy, timesteps):
        seen.update(noisy=noisy, timesteps=timesteps)
        return jnp.zeros_like(noisy)

    loss = denoising_loss(denoise, schedule, LATENTS, jax.random.key(3))
    timesteps = seen["timesteps"]
    alpha = np.asarray(schedule.alphas_cumprod)[timesteps][:, None, None, None]
    noise = (np.asarray(seen["noisy"]) - np.sqrt(alpha) * np.asarray(LATENTS)) / np.sqrt(1 - alpha)
    np.testing.assert_allclose(loss, (noise**2).mean((1, 2, 3)), rtol=1e-3)
    weighted = denoising_loss(denoise, schedule, LATENTS, jax.random.key(3), snr_gamma=5.0)
    np.testing.assert_allclose(weighted, loss * min_snr_weights(schedule, timesteps, 5.0), rtol=1e-6)


def test_timesteps_are_uniform_and_noise_is_standard_normal_and_follows_from_the_key():
    schedule = schedule_for("epsilon")
    latents = jnp.zeros((4000, 2, 2, 1))

    def look(key):
        seen = []
        denoising_loss(lambda *inputs: seen.extend(inputs) or inputs[0], schedule, latents, key)
        return seen

    noisy, timesteps = look(jax.random.key(0))
    assert timesteps.dtype == jnp.int32 and timesteps.min() >= 0 and timesteps.max() <= 999
    np.testing.assert_allclose(np.histogram(timesteps, 4, (0, 1000))[0] / 4000, 0.25, atol=0.03)
    noise = noisy / jnp.sqrt(1 - schedule.alphas_cumprod[timesteps])[:, None, None, None]
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    np.testing.assert_allclose(noisy, add_noise(schedule, latents, noise, timesteps), atol=1e-6)
    again, other = look(jax.random.key(0)), look(jax.random.key(1))
    np.testing.assert_array_equal(again[0], noisy)
    assert not np.array_equal(other[0], noisy) and not np.array_equal(other[1], timesteps)


def test_diffusion_dpo_loss_is_that_of_the_paper():
    """As in SalesforceAIResearch/DiffusionDPO's train.py, in torch: differences of errors, scaled, -logsigmoid."""
    errors = np.random.default_rng(0).uniform(0.1, 0.3, (4, 7)).astype(np.float32)
    winner, loser, reference_winner, reference_loser = map(torch.tensor, errors)
    model_difference, reference_difference = winner - loser, reference_winner - reference_loser
    expected = -torch.nn.functional.logsigmoid(-0.5 * 200.0 * (model_difference - reference_difference))
    loss = diffusion_dpo_loss(*errors, beta=200.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert loss.min() < np.log(2) < loss.max()
    better = diffusion_dpo_loss(errors[0] - 0.01, *errors[1:], beta=200.0)
    assert (better < loss).all()
