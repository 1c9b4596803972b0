"""The denoising steps as a policy (DDPO, Black et al. 2023, arXiv:2305.13301): any reward, no derivative of it needed.

As in the authors' public code (kvablack/ddpo-pytorch): log-probabilities are means over the latents' elements, and
importance-sampled, clipped updates use one set of trajectories several times.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.diffusion.samplers import GaussianSampler, SamplerState
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, apply_adapter
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion


@struct.dataclass
class Trajectory:
    """The denoising trajectories of M images, as one adapter sampled them.

    Attributes:
        sample_inputs: what the images were generated from.
        sampler: of the steps.
        guidance_scale: of the steps (static).
        latents: before each of the S steps, and after the last: float32 [S + 1, M, h, w, C].
        log_probs: of each step, float32 [S, M], see `gaussian_log_prob`.
    """

    sample_inputs: SampleInputs
    sampler: GaussianSampler
    guidance_scale: float = struct.field(pytree_node=False)
    latents: jax.Array
    log_probs: jax.Array


def gaussian_log_prob(values: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """log N(values; mean, std²) for a scalar std, averaged over the elements: float32 [M] of [M, ...].

    Zero where std is zero: a step without noise has no density.
    """
    is_random = std > 0
    safe = jnp.where(is_random, std, 1.0)
    density = -0.5 * jnp.square((values - mean) / safe) - jnp.log(safe) - 0.5 * math.log(2 * math.pi)
    return jnp.where(is_random, jnp.mean(density, axis=tuple(range(1, values.ndim))), 0.0)


def rollout(
    sd: StableDiffusion,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    sampler: GaussianSampler,
    guidance_scale: float,
) -> Trajectory:
    """Samples images and keeps their trajectories; `sampling.decode_latents` decodes `latents[-1]`.

    Args:
        sd: the checkpoint.
        adapter: what is trained.
        sample_inputs: M images, from noise; their keys draw the noise of each step.
        sampler: a stochastic one: `make_sampler` with 'ddim' and eta=1, as in the paper, or 'ddpm', or 'lcm'.
        guidance_scale: as in `sampling.sample`.
    """
    condition, noise = apply_adapter(adapter, sample_inputs)
    denoise = adapter_denoiser(sd, adapter, condition, guidance_scale)

    def step(latents: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        prediction = denoise(latents, sampler.timesteps[index]).astype(jnp.float32)
        mean, std = sampler.transition(SamplerState(latents), index, prediction)
        draws = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), noise.shape[1:]))(
            sample_inputs.keys
        )
        after = mean + std * draws
        return after, (after, gaussian_log_prob(after, mean, std))

    start = sampler.start(noise, sample_inputs.clean_latents).latents
    _, (latents, log_probs) = jax.lax.scan(step, start, jnp.arange(sampler.num_calls))
    latents = jnp.concatenate([start[None], latents])
    trajectory = Trajectory(sample_inputs, sampler, guidance_scale, latents, log_probs)
    return jax.lax.stop_gradient(trajectory)


def normalized_advantages(utilities: jax.Array, groups: jax.Array, num_groups: int, clip: float = 5.0) -> jax.Array:
    """Utilities less their group's mean, over its standard deviation, clipped: float32 [M].

    Args:
        utilities: float32 [M].
        groups: int [M], 0 .. num_groups - 1: the prompt or class of each; all 0 for one group.
        num_groups: G.
        clip: largest magnitude, as in the public code.
    """

    def group_mean(values: jax.Array) -> jax.Array:
        sums = jax.ops.segment_sum(values, groups, num_groups)
        return (sums / jnp.maximum(jax.ops.segment_sum(jnp.ones_like(values), groups, num_groups), 1.0))[groups]

    centred = utilities - group_mean(utilities)
    deviations = jnp.sqrt(group_mean(jnp.square(centred)))
    return jnp.clip(centred / (deviations + 1e-6), -clip, clip)


def clipped_surrogate(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, clip_range: float
) -> jax.Array:
    """PPO's loss (Schulman et al. 2017, eq. 7), to be minimised: [M] of [M] each.

    Where both log-probabilities agree its gradient is REINFORCE's, -advantage · ∇ log p; it vanishes where the ratio
    has moved by more than `clip_range` in the direction of the advantage.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range))


def policy_gradient(
    sd: StableDiffusion,
    adapter: Adapter,
    trajectory: Trajectory,
    advantages: jax.Array,
    clip_range: float = 1e-4,
) -> tuple[jax.Array, Adapter]:
    """The clipped surrogate's mean over steps and images, and its gradient; step by step, in the memory of one.

    Called again with the same trajectory after an update of the adapter, it is one more of DDPO's inner epochs. With a
    LoRA on convolutions it is slow on CPU (see `runtime.loops`).

    Args:
        sd: the checkpoint.
        adapter: what is differentiated.
        trajectory: from `rollout`, of this adapter or of one a few updates ago.
        advantages: float32 [M], see `normalized_advantages`.
        clip_range: of the importance ratio, the public code's; that small because log-probabilities are means.

    Returns:
        (scalar, gradient like the adapter).
    """

    sampler = trajectory.sampler

    def step_loss(adapter: Adapter, index: jax.Array) -> jax.Array:
        condition, _ = apply_adapter(adapter, trajectory.sample_inputs)
        denoise = adapter_denoiser(sd, adapter, condition, trajectory.guidance_scale)
        before, after = trajectory.latents[index], trajectory.latents[index + 1]
        prediction = denoise(before, sampler.timesteps[index]).astype(jnp.float32)
        mean, std = sampler.transition(SamplerState(before), index, prediction)
        log_probs = gaussian_log_prob(after, mean, std)
        return jnp.mean(clipped_surrogate(log_probs, trajectory.log_probs[index], advantages, clip_range))

    def add_step(total: tuple[jax.Array, Adapter], index: jax.Array) -> tuple[tuple[jax.Array, Adapter], None]:
        return optax.tree.add(total, jax.value_and_grad(step_loss)(adapter, index)), None

    zero = (jnp.zeros(()), optax.tree.zeros_like(adapter))
    total, _ = jax.lax.scan(add_step, zero, jnp.arange(sampler.num_calls))
    return optax.tree.scale(1.0 / sampler.num_calls, total)
