import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.generator import toy
from tests.joint.toy_joint import PROGRAM, make_data
from utilgen_jax.diffusion.schedules import add_noise
from utilgen_jax.generator.adapter import generate_images, generate_images_beside
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.joint.regularizers import AnchorBatch, anchor, coverage, make_anchor_set
from utilgen_jax.joint.step import first_inputs


def test_the_anchor_is_zero_where_the_adapter_changes_nothing_and_grows_with_it():
    sd, data = toy.make_toy(), make_data()
    anchors, inputs = data.anchors, first_inputs(PROGRAM, sd, data)
    condition = embeds_condition(sd, anchors.class_embeds[anchors.labels[:1]], data.negative_prompt_embeds)
    inputs = dataclasses.replace(
        inputs, condition=condition, latents=anchors.latents[:1], labels=anchors.labels[:1], rows=anchors.labels[:1]
    )
    batch = AnchorBatch(inputs, anchors.timesteps[:1], anchors.predictions[:1])
    adapter = PROGRAM.init_outer(sd.params, inputs, None, jax.random.key(0))["adapter"]

    @jax.jit
    def distance(adapter):
        others = batch.inputs, batch.timesteps
        images, predictions = generate_images_beside(sd, adapter, inputs, PROGRAM.step_sampling, 1, others)
        return anchor(predictions, batch), images

    zero, images = distance(adapter)
    np.testing.assert_allclose(zero, 0, atol=1e-12)
    np.testing.assert_allclose(images, generate_images(sd, adapter, inputs, PROGRAM.step_sampling), atol=1e-5)
    moved = [jax.tree.map(lambda leaf, s=size: leaf + s, adapter.unet_lora) for size in (0.05, 0.1)]
    small, large = (float(distance(dataclasses.replace(adapter, unet_lora=lora))[0]) for lora in moved)
    assert 0 < small < large


def test_anchors_are_noised_images_of_their_class_and_what_the_frozen_generator_says_of_them():
    sd = toy.make_toy()
    # Images of one number each, the class's own.
    clean = jnp.ones((3, toy.SIDE, toy.SIDE, toy.CHANNELS)) * jnp.arange(3)[:, None, None, None]
    class_embeds = toy.normal(1, 3, toy.WORDS, toy.WIDTH)
    found = make_anchor_set(sd, lambda rows: clean[rows], np.arange(3), class_embeds, (10, 4), jax.random.key(0))
    assert len(found.labels) == 12 and len(set(np.asarray(found.timesteps).tolist())) > 6  # whole batches
    noise = np.asarray(found.latents - add_noise(sd.schedule, clean[found.labels], 0 * found.latents, found.timesteps))
    sigmas = np.sqrt(1 - np.asarray(sd.schedule.alphas_cumprod)[found.timesteps])[:, None, None, None]
    assert abs(np.mean(noise / sigmas)) < 0.2 and abs(np.std(noise / sigmas) - 1) < 0.15
    said = sd.unet.apply(sd.variables("unet"), found.latents, found.timesteps, class_embeds[found.labels], None)
    np.testing.assert_allclose(found.predictions, said, atol=1e-5)


def mmd(one, one_labels, other, other_labels):
    """Pair by pair, in NumPy."""
    features, labels = np.concatenate([one, other]), np.concatenate([one_labels, other_labels])
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / np.median(squares)) * (labels[:, None] == labels[None])
    first = np.arange(len(features)) < len(one)
    return kernel[first][:, first].mean() + kernel[~first][:, ~first].mean() - 2 * kernel[first][:, ~first].mean()


def test_coverage_is_the_discrepancy_pair_by_pair():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32) + 0.5
    one_labels, other_labels = np.arange(6) % 3, np.arange(9) % 3
    found = coverage(one, one_labels, other, other_labels)
    np.testing.assert_allclose(found, mmd(one, one_labels, other, other_labels), rtol=1e-4)
    np.testing.assert_allclose(coverage(one, one_labels, one, one_labels), 0, atol=1e-6)


def test_coverage_draws_images_towards_real_ones_of_their_class():
    real = jnp.array([[0.0, 0.0], [4.0, 0.0]])
    labels = jnp.array([0, 1])
    generated = jnp.array([[1.0, 1.0], [3.0, -1.0]])
    slope = jax.grad(coverage)(generated, labels, real, labels)
    towards = real - generated
    assert (jnp.sum(-slope * towards, -1) > 0).all()
