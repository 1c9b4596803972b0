"""DDPO against the normal density, REINFORCE's gradient and PPO's clipping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tests.generator import toy
from utilgen_jax.diffusion.samplers import SamplerState, make_sampler
from utilgen_jax.generator.adapter import AdapterConfig, adapter_denoiser, apply_adapter, generate_images, init_adapter
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.finetune.ddpo import (
    clipped_surrogate,
    gaussian_log_prob,
    normalized_advantages,
    policy_gradient,
    rollout,
)
from utilgen_jax.generator.sampling import decode_latents

GUIDANCE = 2.0
NUM_STEPS = 3


@pytest.fixture(scope="module")
def toy_domain():
    """(sd, sampler)."""
    sd = toy.make_toy()
    return sd, make_sampler("ddim", sd.schedule, NUM_STEPS, eta=1.0)


@pytest.fixture(scope="module")
def adapter(toy_domain):
    return init_adapter(
        toy_domain[0].params,
        toy.toy_requests(6),
        AdapterConfig(lora_rank=2, num_prompts=toy.CLASSES),
        jax.random.key(0),
    )


def test_the_log_probability_is_that_of_a_normal_density():
    values, mean = toy.normal(0, 2, 5, 4, 4, 2)
    expected = stats.norm(mean, 0.3).logpdf(values).mean((1, 2, 3))
    np.testing.assert_allclose(gaussian_log_prob(values, mean, jnp.float32(0.3)), expected, rtol=1e-5)


def test_a_step_without_noise_has_neither_density_nor_gradient():
    mean = jnp.ones((2, 1, 1, 1))
    value, slope = jax.value_and_grad(lambda mean: gaussian_log_prob(mean + 1, mean, jnp.float32(0)).sum())(mean)
    assert value == 0 and not slope.any()


@pytest.mark.slow
@pytest.mark.parametrize("scheduler, eta", [("ddim", 1.0), ("lcm", 0.0)])
def test_a_rollout_generates_the_same_images_and_remembers_its_densities(toy_domain, adapter, scheduler, eta):
    sd, _ = toy_domain
    sampler = make_sampler(scheduler, sd.schedule, NUM_STEPS, eta=eta)
    sample_inputs = toy.toy_requests(6)
    trajectory = jax.jit(rollout, static_argnums=4)(sd, adapter, sample_inputs, sampler, GUIDANCE)
    sampling = SamplingConfig(scheduler, steps=NUM_STEPS, guidance_scale=GUIDANCE, image_size=8, eta=eta)
    expected = generate_images(sd, adapter, sample_inputs, sampling)
    np.testing.assert_allclose(decode_latents(sd, trajectory.latents[-1]), expected, atol=1e-5)
    condition, _ = apply_adapter(adapter, sample_inputs)
    denoise = adapter_denoiser(sd, adapter, condition, GUIDANCE)
    for step in range(NUM_STEPS):
        prediction = denoise(trajectory.latents[step], sampler.timesteps[step])
        mean, std = sampler.transition(SamplerState(trajectory.latents[step]), step, prediction)
        densities = stats.norm(mean, std).logpdf(trajectory.latents[step + 1]).mean((1, 2, 3)) if std > 0 else 0.0
        np.testing.assert_allclose(trajectory.log_probs[step], densities, atol=1e-3)
    assert np.abs(trajectory.log_probs).max() > 0.1


def test_for_the_adapter_that_sampled_it_is_the_reinforce_gradient(toy_domain, adapter):
    sd, sampler = toy_domain
    sample_inputs = toy.toy_requests(6)
    trajectory = jax.jit(rollout, static_argnums=4)(sd, adapter, sample_inputs, sampler, GUIDANCE)
    advantages = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])

    def reinforce(adapter):
        condition, _ = apply_adapter(adapter, sample_inputs)
        denoise = adapter_denoiser(sd, adapter, condition, GUIDANCE)
        total = 0.0
        for step in range(NUM_STEPS):
            before, after = trajectory.latents[step], trajectory.latents[step + 1]
            mean, std = sampler.transition(SamplerState(before), step, denoise(before, sampler.timesteps[step]))
            if step == NUM_STEPS - 1:  # this schedule ends without noise
                continue
            density = -jnp.mean(jnp.square(after - mean), axis=(1, 2, 3)) / (2 * std**2)
            total -= jnp.mean(advantages * density) / NUM_STEPS
        return total

    loss, gradient = jax.jit(policy_gradient)(sd, adapter, trajectory, advantages)
    expected = jax.jit(jax.grad(reinforce))(adapter)
    assert optax.tree.norm(expected) > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient, expected)
    np.testing.assert_allclose(loss, -advantages.mean(), atol=1e-4)
    assert sampler.stds[-1] == 0


def test_the_surrogate_is_clipped_where_the_ratio_went_far_enough():
    ratios = jnp.array([1.05, 1.5, 0.5, 1.5, 0.5])
    advantages = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0])
    losses, slopes = jax.vmap(jax.value_and_grad(clipped_surrogate), (0, None, 0, None))(
        jnp.log(ratios), 0.0, advantages, 0.2
    )
    np.testing.assert_allclose(losses, [-2.1, -2.4, -1.0, 3.0, 1.6], rtol=1e-5)
    np.testing.assert_allclose(slopes, [-2.1, 0.0, -1.0, 3.0, 0.0], rtol=1e-5)


def test_advantages_are_normalised_in_their_group_and_clipped():
    utilities = np.random.default_rng(0).normal(3.0, 2.0, 12).astype(np.float32)
    utilities[0] = 60.0
    groups = np.array([0] * 6 + [2] * 5 + [3])
    advantages = normalized_advantages(jnp.asarray(utilities), groups, 4, clip=1.5)
    for group in (0, 2):
        own = utilities[groups == group]
        expected = np.clip((own - own.mean()) / own.std(), -1.5, 1.5)
        np.testing.assert_allclose(advantages[groups == group], expected, atol=1e-4)
    assert advantages[-1] == 0  # alone in its group, better or worse than nobody
    assert advantages[0] == 1.5


@pytest.mark.slow
def test_updates_raise_the_reward(toy_domain, adapter):
    """Redness, in ten rounds, each with fresh noise."""
    sd, sampler = toy_domain
    optimizer = optax.adam(0.1)

    @jax.jit
    def sampled(adapter, sample_inputs):
        trajectory = rollout(sd, adapter, sample_inputs, sampler, GUIDANCE)
        return trajectory, decode_latents(sd, trajectory.latents[-1])[..., 0].mean((1, 2))

    @jax.jit
    def update(adapter, state, trajectory, rewards):
        advantages = normalized_advantages(rewards, trajectory.sample_inputs.labels, toy.CLASSES)
        _, gradient = policy_gradient(sd, adapter, trajectory, advantages)
        updates, state = optimizer.update(gradient, state, adapter)
        return optax.apply_updates(adapter, updates), state

    held_out = toy.toy_requests(48, seed=99)
    _, before = sampled(adapter, held_out)
    state = optimizer.init(adapter)
    for round_number in range(10):
        trajectory, rewards = sampled(adapter, toy.toy_requests(48, seed=round_number))
        adapter, state = update(adapter, state, trajectory, rewards)
    _, after = sampled(adapter, held_out)
    assert after.mean() > before.mean() + 0.05  # three times the deviation within a class
