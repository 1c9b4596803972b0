"""Prompts that climb: the utility rises, and the CLIP term holds the image where it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from utilgen_jax.generator.prompt_ascent import prompt_ascent_loss

from tests.generator import toy
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import generate_images, init_adapter

GENERATOR, PARAMS = toy.make_toy()
GENERATE = partial(generate_images, GENERATOR, PARAMS, num_steps=2, guidance_scale=2.0, num_differentiable_steps=1)


def similarity(images, anchors):
    flat = images.reshape(len(images), -1)
    return jnp.sum(flat * anchors, -1) / jnp.linalg.norm(flat, axis=-1) / jnp.linalg.norm(anchors, axis=-1)


def brightness(images, labels):
    return images.mean((1, 2, 3)) + 0.0 * labels


def ascend(clip_weight):
    """Ten steps of Adam; returns (utility, cosine), before and after."""
    sample_inputs = toy.toy_requests(3)
    adapter = init_adapter(PARAMS, sample_inputs, jax.random.key(0), num_prompts=3, lora_rank=2)
    start = GENERATE(adapter, sample_inputs)
    sample_inputs = sample_inputs.replace(clip_anchors=start.reshape(3, -1))
    loss = partial(
        prompt_ascent_loss, generate_images=GENERATE, utility=brightness, similarity=similarity, clip_weight=clip_weight
    )
    step = jax.jit(jax.value_and_grad(loss))
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
    np.testing.assert_allclose(losses[0], -before.sum(), rtol=1e-5)
    assert losses[-1] < losses[0] and (free > before).all()
    losses, (_, (held, stayed)) = ascend(clip_weight=5.0)
    np.testing.assert_allclose(losses[0], -before.sum(), atol=1e-4)  # an image is as near to itself as can be
    assert stayed.mean() > strayed.mean() and held.mean() < free.mean()


def test_without_anchors_it_is_refused():
    sample_inputs = toy.toy_requests(3)
    adapter = init_adapter(PARAMS, sample_inputs, jax.random.key(0), num_prompts=3)
    with pytest.raises(InputError, match="clip_anchors"):
        prompt_ascent_loss(
            adapter.prompt_offsets,
            adapter,
            sample_inputs,
            generate_images=GENERATE,
            utility=brightness,
            similarity=similarity,
        )
