"""Prompts and noises of each image's own, with a generator of two matrices."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.generator import toy
from utilgen_jax.diffusion.samplers import invert, make_sampler, run_sampler
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import (
    Adapter,
    AdapterConfig,
    adapter_denoiser,
    apply_adapter,
    generate_images,
    init_adapter,
)
from utilgen_jax.generator.config import PerImageConfig, SamplingConfig
from utilgen_jax.generator.per_image import AnchoredUtility, add_golden_noise, optimize_prompts, prompt_ascent_loss

SD = toy.make_toy()
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
SAMPLING = SamplingConfig(steps=3, guidance_scale=2.0, image_size=8)
GENERATE = partial(generate_images, SD, sampling=dataclasses.replace(SAMPLING, steps=2))


def brightness(images, labels):
    """A utility: bright images of class 0, dark ones of the others."""
    return jnp.where(labels == 0, 1.0, -1.0) * images.mean(axis=(1, 2, 3))


def similarity(images, anchors):
    flat = images.reshape(len(images), -1)
    return jnp.sum(flat * anchors, -1) / jnp.linalg.norm(flat, axis=-1) / jnp.linalg.norm(anchors, axis=-1)


def inputs_with_rows(number):
    return dataclasses.replace(toy.toy_requests(number), rows=jnp.arange(number))


@pytest.mark.slow
def test_each_prompt_moves_to_where_its_utility_is_larger_whatever_its_batch():
    sample_inputs = inputs_with_rows(6)

    def improve(sample_inputs):
        # The pool's own number of steps has no part in it.
        sampling = dataclasses.replace(SAMPLING, steps=50)
        return optimize_prompts(SD, Adapter(), sample_inputs, AnchoredUtility(brightness), CONFIG, sampling)

    adapter = improve(sample_inputs)
    before, after = (
        brightness(generate_images(SD, each, sample_inputs, SAMPLING), sample_inputs.labels)
        for each in (Adapter(), adapter)
    )
    assert (after > before).all()
    assert np.abs(adapter.prompt_offsets).max() <= 6 * 0.1 * 1.01
    alone = improve(jax.tree.map(lambda leaf: leaf[:2], sample_inputs))
    np.testing.assert_allclose(alone.prompt_offsets, adapter.prompt_offsets[:2], atol=1e-5)


def ascend(clip_weight):
    """Ten steps of Adam; returns the losses, and (utility, cosine) before and after."""
    sample_inputs = toy.toy_requests(3)
    adapter = init_adapter(SD.params, sample_inputs, AdapterConfig(num_prompts=3, lora_rank=2), jax.random.key(0))
    start = GENERATE(adapter, sample_inputs)
    sample_inputs = sample_inputs.replace(clip_anchors=start.reshape(3, -1))
    objective = AnchoredUtility(brightness, similarity, clip_weight)
    step = jax.jit(jax.value_and_grad(partial(prompt_ascent_loss, generate=GENERATE, objective=objective)))
    offsets, optimizer, losses = adapter.prompt_offsets, optax.adam(0.1), []
    state = optimizer.init(offsets)
    for _ in range(10):
        value, gradient = step(offsets, adapter, sample_inputs)
        updates, state = optimizer.update(gradient, state)
        offsets = optax.apply_updates(offsets, updates)
        losses.append(float(value))
    images = GENERATE(adapter.replace(prompt_offsets=offsets), sample_inputs)
    return losses, [
        (brightness(each, sample_inputs.labels), similarity(each, sample_inputs.clip_anchors))
        for each in (start, images)
    ]


@pytest.mark.slow
def test_the_utility_rises_and_the_clip_term_holds_the_meaning():
    losses, ((before, _), (free, strayed)) = ascend(clip_weight=0.0)
    np.testing.assert_allclose(losses[0], -before.sum(), rtol=1e-4)
    assert losses[-1] < losses[0] and (free > before).all()
    losses, (_, (held, stayed)) = ascend(clip_weight=5.0)
    np.testing.assert_allclose(losses[0], -before.sum(), atol=1e-4)  # an image is as near to itself as can be
    assert stayed.mean() > strayed.mean() and held.mean() < free.mean()


def test_the_loss_is_the_sum_of_utility_and_clip_distance():
    sample_inputs = toy.toy_requests(3).replace(clip_anchors=toy.normal(5, 3, 8 * 8 * 3))
    images = GENERATE(Adapter(), sample_inputs)
    loss = prompt_ascent_loss(
        None, Adapter(), sample_inputs, GENERATE, AnchoredUtility(brightness, similarity, clip_weight=0.5)
    )
    expected = brightness(images, sample_inputs.labels) - 0.5 * (1 - similarity(images, sample_inputs.clip_anchors))
    np.testing.assert_allclose(loss, -expected.sum(), rtol=1e-5)


def test_without_anchors_it_is_refused():
    sample_inputs = toy.toy_requests(3)
    with pytest.raises(InputError, match="clip_anchors"):
        prompt_ascent_loss(None, Adapter(), sample_inputs, GENERATE, AnchoredUtility(brightness, similarity))


def new_noise(sample_inputs, steps, calls, forth, back, guidance_scale=1.0):
    config = dataclasses.replace(CONFIG, inversion_steps=calls, denoising_guidance=forth, inversion_guidance=back)
    sampling = SamplingConfig(steps=steps, guidance_scale=guidance_scale, image_size=8)
    return add_golden_noise(SD, Adapter(), sample_inputs, config, sampling)


@pytest.mark.parametrize("share", [1, 5])
def test_without_a_gap_in_guidance_the_noise_comes_back(share):
    sample_inputs = inputs_with_rows(3)
    errors = [
        np.abs(new_noise(sample_inputs, steps, steps // share, 1.0, 1.0).noise_offsets).max() for steps in (10, 200)
    ]
    assert errors[1] < 0.1 and 2 * errors[1] < errors[0]


def test_the_gap_leads_towards_the_guided_image():
    """Without guidance, the new noise makes an image that is nearer to the strongly guided one than the old did."""
    sample_inputs = inputs_with_rows(3)
    golden = new_noise(sample_inputs, 50, 50, 5.5, 1.0)
    assert golden.noise_offsets.shape == sample_inputs.latents.shape and np.abs(golden.noise_offsets).max() > 0.1
    strong, none = (SamplingConfig(steps=50, guidance_scale=scale, image_size=8) for scale in (5.5, 1.0))
    guided = generate_images(SD, Adapter(), sample_inputs, strong)
    distances = [np.abs(generate_images(SD, each, sample_inputs, none) - guided).mean() for each in (Adapter(), golden)]
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(("given", "used"), [(4.0, 4.0), (0.0, 2.5)])
def test_noises_are_those_of_the_gap_in_guidance(given, used):
    sample_inputs = inputs_with_rows(4)
    adapter = new_noise(sample_inputs, 3, 2, given, 1.0, guidance_scale=2.5)
    condition, noise = apply_adapter(Adapter(), sample_inputs)
    forth, back = (adapter_denoiser(SD, Adapter(), condition, scale) for scale in (used, 1.0))
    latents = run_sampler(forth, make_sampler("ddim", SD.schedule, 3), noise, calls=slice(2))
    expected = invert(back, SD.schedule, latents, 3, 2)
    np.testing.assert_allclose(sample_inputs.latents + adapter.noise_offsets, expected, atol=1e-5)
    assert np.abs(adapter.noise_offsets).max() > 1e-3
