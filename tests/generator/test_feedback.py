"""Feedback guidance against its closed form, and its effect on what the classifier says."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from utilgen_jax.diffusion.schedules import clean_and_noise, diffuse, load_schedule
from utilgen_jax.generator import feedback as module
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.feedback import Feedback
from utilgen_jax.generator.sampling import initial_latents, sample

LATENTS = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))


def linear(weights, images):
    """Two logits of the mean of the first channel."""
    mean = images[..., 0].mean((1, 2))
    return jnp.stack([weights * mean, -weights * mean], -1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_predicted_clean_image_moves_along_the_entropys_gradient(monkeypatch, kind):
    # A decoder that changes nothing: latents are images.
    monkeypatch.setattr(module, "decode_latents", lambda sd, latents: latents)
    sd = SimpleNamespace(schedule=load_schedule({"prediction_type": kind}))
    prediction = 0.3 * jax.random.normal(jax.random.key(1), LATENTS.shape)
    guided = Feedback(Partial(linear, 2.0), 0.1).guide(sd, lambda latents, timestep: prediction)
    timestep = 500
    alpha = sd.schedule.alphas_cumprod[timestep]
    before, _ = clean_and_noise(kind, prediction, LATENTS, alpha)
    after, noise = clean_and_noise(kind, guided(LATENTS, jnp.asarray(timestep)), LATENTS, alpha)
    # Entropy rises as the mean of the first channel nears 0, the same way at every pixel.
    direction = np.zeros(LATENTS.shape)
    direction[..., 0] = -np.sign(before[..., 0].mean((1, 2)))[:, None, None] / 4
    norms = np.linalg.norm(np.asarray(before).reshape(3, -1), axis=1)[:, None, None, None]
    np.testing.assert_allclose(after, before + 0.1 * norms * direction, atol=2e-4)
    # Clean latents and noise still make up the noisy ones.
    np.testing.assert_allclose(diffuse(after, noise, alpha), LATENTS, atol=1e-4)


def test_parts_of_a_batch_are_led_as_the_whole(monkeypatch):
    monkeypatch.setattr(module, "decode_latents", lambda sd, latents: latents)
    sd = SimpleNamespace(schedule=load_schedule({"prediction_type": "sample"}))
    latents = jax.random.normal(jax.random.key(2), (6, 4, 4, 2))

    def lead(micro_batch_size):
        seen = []

        def predict(images):
            seen.append(len(images))
            return linear(2.0, images)

        feedback = Feedback(Partial(predict), 0.1, micro_batch_size)
        return feedback.guide(sd, lambda latents, timestep: latents)(latents, jnp.asarray(500)), set(seen)

    (whole, all_at_once), (parts, two_at_once) = lead(0), lead(2)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    assert all_at_once == {6} and two_at_once == {2}


@pytest.mark.slow
def test_sampling_leads_to_images_of_which_the_classifier_is_less_sure_or_surer(loaded):
    sd, sampling = loaded("sd15"), SamplingConfig(steps=4, guidance_scale=2.0, image_size=16)
    condition = text_condition(sd, ["a photo of the digit two"] * 3)
    latents = initial_latents(sd.architecture, np.arange(3), sampling.size)

    def entropies(scale):
        feedback = Feedback(Partial(linear, 20.0), scale)
        images = sample(sd, dataclasses.replace(condition, feedback=feedback), latents, sampling)
        logs = jax.nn.log_softmax(linear(20.0, images))
        return np.asarray(-jnp.sum(jnp.exp(logs) * logs, -1))

    plain = sample(sd, condition, latents, sampling)
    np.testing.assert_allclose(
        sample(sd, dataclasses.replace(condition, feedback=Feedback(Partial(linear, 20.0), 0.0)), latents, sampling),
        plain,
        atol=1e-3,
    )
    assert np.all(entropies(0.1) > entropies(0.0)) and np.all(entropies(-0.1) < entropies(0.0))
