"""The sampling loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.diffusion.samplers.ddim import make_ddim_inversion
from utilgen_jax.diffusion.samplers.guidance import Denoiser
from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState
from utilgen_jax.diffusion.schedules import NoiseSchedule
from utilgen_jax.errors import InputError

# XLA's CPU backend is slow at weight gradients of convolutions inside `lax.scan`, so that a few differentiable steps
# are unrolled. More steps would take too long to compile.
_MAX_UNROLLED = 4


def run_sampler(
    denoise: Denoiser,
    sampler: Sampler,
    noise: jax.Array,
    *,
    clean_latents: jax.Array | None = None,
    keys: jax.Array | None = None,
    num_differentiable_steps: int | None = None,
    calls: slice = slice(None),
) -> jax.Array:
    """Denoises with a `lax.scan` over denoiser calls, followed by a few unrolled differentiable ones.

    Args:
        denoise: conditioned (and guided) denoiser with the sampler's prediction type.
        sampler: sampler from `make_sampler`.
        noise: standard normal noise, float32 [B, h, w, C].
        clean_latents: latents of initial images, float32 [B, h, w, C]; None to start from pure noise.
        keys: PRNG keys [B] for the noise of a stochastic sampler, one per sample, so that results do not depend on
            batching.
        num_differentiable_steps: number of last denoiser calls with gradients; where they are several, the backward
            pass recomputes them. None for gradients of all calls without recomputation.
        calls: slice of the sampler's denoiser calls to run.

    Returns:
        Clean latents, float32 [B, h, w, C], multiplied by the autoencoder's scaling factor; or the noisy latents after
        the last of fewer calls.

    Raises:
        InputError: the sampler is stochastic and there are no keys.
    """
    if sampler.is_stochastic and keys is None:
        raise InputError(f"the sampler {type(sampler).__name__} is stochastic: it needs keys")

    def step(state: SamplerState, index: jax.Array) -> tuple[SamplerState, None]:
        prediction = denoise(sampler.model_input(state, index), sampler.timesteps[index])
        prediction = prediction.astype(jnp.promote_types(prediction.dtype, jnp.float32))
        step_noise = _step_noise(keys, index, noise.shape[1:]) if sampler.is_stochastic else None
        return sampler.step(state, index, prediction, step_noise), None

    def step_without_gradient(state: SamplerState, index: jax.Array) -> tuple[SamplerState, None]:
        # Stopping gradients inside the loop avoids computing and storing derivatives of its steps.
        return jax.lax.stop_gradient(step(state, index))

    state, indices = sampler.start(noise, clean_latents), jnp.arange(sampler.num_calls)[calls]
    if num_differentiable_steps is None:
        return jax.lax.scan(step, state, indices)[0].latents
    split = max(len(indices) - num_differentiable_steps, 0)
    if split:
        state, _ = jax.lax.scan(step_without_gradient, state, indices[:split])
    # What a single step keeps is used next; computing it again would save little.
    differentiable_step = step if num_differentiable_steps == 1 else jax.checkpoint(step)
    if num_differentiable_steps > _MAX_UNROLLED:
        return jax.lax.scan(differentiable_step, state, indices[split:])[0].latents
    for index in indices[split:]:
        state, _ = differentiable_step(state, index)
    return state.latents


def _step_noise(keys: jax.Array | None, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal noise for a step, float32 [B, *shape], with a key per sample."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def invert(
    denoise: Denoiser, schedule: NoiseSchedule, latents: jax.Array, num_steps: int, num_calls: int | None = None
) -> jax.Array:
    """Returns the noise from which deterministic DDIM approximately generates the latents (DDIM inversion).

    Args:
        denoise: conditioned denoiser with the schedule's prediction type.
        schedule: noise schedule, not traced.
        latents: clean latents, float32 [B, h, w, C], multiplied by the autoencoder's scaling factor.
        num_steps: number of steps between clean latents and noise.
        num_calls: number of first DDIM steps that generated the latents, for noisy latents; None for clean latents.

    Returns:
        Noise, float32 [B, h, w, C].

    Raises:
        InputError: see `make_ddim_inversion`.
    """
    first = 0 if num_calls is None else num_steps - num_calls
    return run_sampler(denoise, make_ddim_inversion(schedule, num_steps), latents, calls=slice(first, None))
