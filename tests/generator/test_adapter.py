"""The adapter: nothing at first, then differentiable in all its parts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.generator import toy
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import (
    Adapter,
    AdapterConfig,
    adapter_loras,
    apply_adapter,
    generate_images,
    init_adapter,
    make_generate,
    requested_difficulty,
    unscaled_factors,
)
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.inputs import make_sample_inputs
from utilgen_jax.generator.sampling import sample
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora

SAMPLING = SamplingConfig(steps=3, guidance_scale=2.0, image_size=8)
KEY = jax.random.key(0)
ENCODER = DifficultyEncoder(toy.CLASSES, toy.WIDTH)
TABLES = {"lora_rank": 2, "num_prompts": toy.CLASSES, "num_noises": toy.CLASSES}


@pytest.fixture(scope="module")
def sd():
    return toy.make_toy()


@pytest.fixture(scope="module")
def sample_inputs():
    return toy.toy_requests(6)


def disturbed(adapter, scale=0.3):
    rng = np.random.default_rng(50)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape, np.float32), adapter)


@pytest.mark.parametrize("changes", [{}, {"scheduler": "ddpm", "strength": 0.7}], ids=str)
def test_a_fresh_adapter_generates_what_is_generated_without_one(sd, sample_inputs, changes):
    if "strength" in changes:
        sample_inputs = sample_inputs.replace(clean_latents=0.3 * jnp.ones_like(sample_inputs.latents))
    sampling = dataclasses.replace(SAMPLING, **changes)
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(**TABLES), KEY)
    images = generate_images(sd, adapter, sample_inputs, sampling)
    plain = sample(
        sd,
        sample_inputs.condition,
        sample_inputs.latents,
        sampling,
        keys=sample_inputs.keys,
        clean_latents=sample_inputs.clean_latents,
    )
    assert images.shape == (6, 8, 8, 3) and np.std(plain) > 0.05
    np.testing.assert_allclose(images, plain, atol=1e-6)


def test_an_added_difficulty_token_changes_nothing_at_first_and_then_the_last_text_state(sd, sample_inputs):
    asked = {"num_classes": toy.CLASSES, "difficulties": [0.3, 0.5, 0.7], "difficulty_offset": True}
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(**asked), KEY)
    assert adapter.knows_difficulty and adapter.difficulty_encoder is None
    before, _ = apply_adapter(adapter, sample_inputs)
    np.testing.assert_array_equal(before.prompt_embeds, sample_inputs.condition.prompt_embeds)
    moved = adapter.replace(difficulty_offset=ENCODER.init(KEY, sample_inputs.labels, jnp.zeros(6))["params"])
    after, _ = apply_adapter(moved, sample_inputs)
    change = after.prompt_embeds - before.prompt_embeds
    difficulty = jnp.array([0.3, 0.5, 0.7])[sample_inputs.rows]
    token = ENCODER.apply({"params": moved.difficulty_offset}, sample_inputs.labels, difficulty)
    np.testing.assert_allclose(change[:, -1:], token, atol=1e-5)
    assert not change[:, :-1].any()
    opposite = ENCODER.apply({"params": moved.difficulty_offset}, sample_inputs.labels, 1 - difficulty)
    negative = after.negative_prompt_embeds - before.negative_prompt_embeds
    np.testing.assert_allclose(negative[:, -1:], opposite, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences(sd, sample_inputs):
    asked = {"num_classes": toy.CLASSES, "difficulties": [0.3, 0.5, 0.7]}
    fresh = init_adapter(sd.params, sample_inputs, AdapterConfig(**TABLES, **asked), KEY)
    adapter = disturbed(fresh).replace(difficulty_encoder=fresh.difficulty_encoder)
    weights = toy.normal(3, 6, 8, 8, 3)

    @jax.jit
    def total(adapter):
        return jnp.sum(weights * generate_images(sd, adapter, sample_inputs, SAMPLING, None))

    slopes = jax.jit(jax.grad(total))(adapter)
    for field in dataclasses.fields(adapter):
        # The first two have a part in training alone; the other is held against float64 in tests/joint.
        if field.name in ("text_encoder_lora", "text_encoder_2_lora", "difficulty_offset"):
            continue
        length = 0.1 if field.name == "difficulty_logits" else 3e-3  # a small part of a small word
        value, slope = getattr(adapter, field.name), getattr(slopes, field.name)
        direction = jax.tree.map(lambda leaf: toy.normal(leaf.size, *leaf.shape), value)
        above, below = (
            total(adapter.replace(**{field.name: jax.tree.map(lambda leaf, d, s=step: leaf + s * d, value, direction)}))
            for step in (length, -length)
        )
        expected = (above - below) / (2 * length)
        assert abs(expected) > 1e-3, field.name
        np.testing.assert_allclose(
            optax.tree.vdot(slope, direction), expected, rtol=2e-2, atol=2e-4, err_msg=field.name
        )


@pytest.mark.slow
def test_the_last_step_alone_has_its_own_part_of_the_gradient(sd, sample_inputs):
    adapter = disturbed(init_adapter(sd.params, sample_inputs, AdapterConfig(**TABLES), KEY))

    def gradient(steps):
        total = jax.jit(jax.grad(lambda adapter: jnp.sum(generate_images(sd, adapter, sample_inputs, SAMPLING, steps))))
        return total(adapter)

    one, three, everything = (gradient(steps) for steps in (1, 3, None))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), three, everything)
    assert 0 < optax.tree.norm(one.prompt_offsets) != pytest.approx(float(optax.tree.norm(three.prompt_offsets)))
    assert optax.tree.norm(one.noise_offsets) == 0 < optax.tree.norm(three.noise_offsets)


def test_a_row_is_moved_by_its_own_images(sd):
    sample_inputs = toy.toy_requests(4).replace(rows=jnp.array([0, 0, 3, 1]))
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(num_prompts=5), KEY)
    generated = jax.jit(partial(generate_images, sd, sampling=SAMPLING))
    gradient = jax.jit(jax.grad(lambda adapter: jnp.sum(generated(adapter, sample_inputs))))(adapter)
    touched = np.abs(gradient.prompt_offsets).max((1, 2)) > 0
    np.testing.assert_array_equal(touched, [True, True, False, True, False])
    moved = adapter.replace(prompt_offsets=adapter.prompt_offsets.at[3].add(1.0))
    changes = generated(moved, sample_inputs) - generated(adapter, sample_inputs)
    np.testing.assert_array_equal(np.abs(changes).max((1, 2, 3)) > 1e-4, [False, False, True, False])


@pytest.mark.slow
def test_lora_gradients_are_finite_at_zero_also_through_adam(sd, sample_inputs):
    """At first `up` is zero, so that `down` has a gradient of exactly zero: where Adam's square root has no slope."""
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(lora_rank=2), KEY)
    optimizer = optax.adam(0.1, eps_root=1e-8)

    @jax.jit
    def loss(adapter):
        return jnp.sum(jnp.square(generate_images(sd, adapter, sample_inputs, SAMPLING)))

    gradient = jax.grad(loss)(adapter)
    factors = gradient.unet_lora["mid.to_q"]
    assert optax.tree.norm(factors["down"]) == 0 < optax.tree.norm(factors["up"])

    @jax.jit
    def loss_after_step(scale):
        updates, _ = optimizer.update(jax.grad(lambda adapter: scale * loss(adapter))(adapter), optimizer.init(adapter))
        return loss(optax.apply_updates(adapter, updates))

    assert np.isfinite(jax.grad(loss_after_step)(1.0))
    assert loss_after_step(1.0) < loss(adapter)


def test_lora_scales_are_one_and_no_part_of_the_adapter(sd, sample_inputs):
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(lora_rank=2), KEY)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(adapter)) == [(2, 2), (2, 2), (2, 2), (4, 2)]
    assert adapter_loras(adapter)["unet"].scales == {"mid.to_q": {"scale": 1.0}, "mid.to_k": {"scale": 1.0}}
    assert adapter_loras(init_adapter(sd.params, sample_inputs, AdapterConfig(), KEY)) == {}


def test_the_scale_of_a_trained_lora_goes_into_its_factors(sd, sample_inputs):
    lora = init_lora(sd.params["unet"], KEY, rank=2, alpha=5.0, targets=["to_q", "to_k"])
    lora = dataclasses.replace(lora, factors=jax.tree.map(lambda leaf: leaf + 0.3, lora.factors))
    expected = sample(
        sd,
        sample_inputs.condition,
        sample_inputs.latents,
        SAMPLING,
        loras={"unet": lora},
        keys=sample_inputs.keys,
    )
    adapter = Adapter(unet_lora=unscaled_factors(lora))
    np.testing.assert_allclose(generate_images(sd, adapter, sample_inputs, SAMPLING), expected, atol=1e-5)


def test_the_difficulty_asked_for_becomes_one_more_word(sd, sample_inputs):
    adapter = init_adapter(
        sd.params, sample_inputs, AdapterConfig(num_classes=toy.CLASSES, difficulties=[0.2, 0.5, 0.9]), KEY
    )
    np.testing.assert_allclose(requested_difficulty(adapter, sample_inputs), [0.2, 0.5, 0.9] * 2, rtol=1e-6)
    condition, _ = apply_adapter(adapter, sample_inputs)
    assert condition.prompt_embeds.shape == condition.negative_prompt_embeds.shape == (6, toy.WORDS + 1, toy.WIDTH)
    np.testing.assert_array_equal(condition.prompt_embeds[:, :-1], sample_inputs.condition.prompt_embeds)
    np.testing.assert_array_equal(
        condition.negative_prompt_embeds[:, :-1], sample_inputs.condition.negative_prompt_embeds
    )
    tokens = condition.prompt_embeds[:, -1]
    np.testing.assert_allclose(tokens[:3], tokens[3:], rtol=1e-5)  # same class, same difficulty
    # Guidance leads away from the opposite difficulty.
    opposite, _ = apply_adapter(adapter.replace(difficulty_logits=-adapter.difficulty_logits), sample_inputs)
    np.testing.assert_allclose(condition.negative_prompt_embeds[:, -1], opposite.prompt_embeds[:, -1], rtol=1e-5)
    assert np.abs(condition.negative_prompt_embeds[0, -1] - tokens[0]).max() > 1e-3
    wild = adapter.replace(difficulty_logits=jnp.array([-1e4, 0.0, 1e4]))
    np.testing.assert_array_equal(requested_difficulty(wild, sample_inputs), [0.0, 0.5, 1.0] * 2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_classes": 3}, "both"),
        ({"difficulties": [0.5]}, "both"),
        ({"num_classes": 3, "difficulties": [0.5, 1.0]}, r"difficulties=\[0.5, 1.0\] must be above 0 and below 1"),
    ],
)
def test_a_difficulty_that_cannot_be_asked_for_is_refused(sd, sample_inputs, settings, message):
    with pytest.raises(InputError, match=message):
        init_adapter(sd.params, sample_inputs, AdapterConfig(**settings), KEY)


def test_generated_examples_are_what_the_classifier_sees(sd, sample_inputs):
    adapter = init_adapter(
        sd.params, sample_inputs, AdapterConfig(num_classes=toy.CLASSES, difficulties=[0.2, 0.5, 0.9]), KEY
    )
    generated = partial(generate_images, sd, sampling=SAMPLING)
    sample_inputs = sample_inputs.replace(clip_anchors=toy.normal(4, 6, 3))
    generate = make_generate(
        generated, toy.to_examples, lambda images, anchors: jnp.sum(images.mean((1, 2)) * anchors, 1)
    )
    examples = generate(adapter, sample_inputs)
    images = np.asarray(generated(adapter, sample_inputs))
    grey = (images * [0.299, 0.587, 0.114]).sum(-1, keepdims=True).reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(examples.inputs, grey, atol=1e-6)
    np.testing.assert_allclose(examples.targets, np.eye(3)[[0, 1, 2] * 2] * 0.9 + 0.1 / 3, atol=1e-6)
    np.testing.assert_allclose(examples.difficulty, [0.2, 0.5, 0.9] * 2, rtol=1e-6)
    np.testing.assert_allclose(
        examples.similarity, (images.mean((1, 2)) * sample_inputs.clip_anchors).sum(1), rtol=1e-4
    )
    assert examples.is_weighted is None


@pytest.mark.slow
def test_with_a_real_unet(loaded):
    """That of diffusers' tiny checkpoint, in one step, as few-step generators have it."""
    sd = loaded("sd15")
    sampling = SamplingConfig("lcm", steps=1, guidance_scale=2.0, image_size=16)
    sample_inputs = make_sample_inputs(sd, ["the digit 7", "a photo of it"], [0, 1], [5, 6], sampling)
    adapter = init_adapter(sd.params, sample_inputs, AdapterConfig(**TABLES), KEY)
    plain = sample(
        sd,
        sample_inputs.condition,
        sample_inputs.latents,
        sampling,
        keys=sample_inputs.keys,
    )

    @jax.jit
    def gradient(adapter):
        def loss(adapter):
            images = generate_images(sd, adapter, sample_inputs, sampling)
            return jnp.sum(jnp.square(images)), images

        return jax.grad(loss, has_aux=True)(adapter)

    slopes, images = gradient(adapter)
    np.testing.assert_allclose(images, plain, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert optax.tree.norm(slopes.unet_lora) > 0 and optax.tree.norm(slopes.prompt_offsets) > 0
    moved = dataclasses.replace(adapter, prompt_offsets=adapter.prompt_offsets + 1.0)
    assert np.abs(gradient(moved)[1] - images).max() > 1e-3
