"""The loop: calls the denoiser at each of a sampler's timesteps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.diffusion.samplers.ddim import make_ddim_inversion
from utilgen_jax.diffusion.samplers.guidance import Denoiser
from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState
from utilgen_jax.diffusion.schedules import NoiseSchedule
from utilgen_jax.errors import InputError

# On CPU a convolution's weight gradient inside `lax.scan` is some fifty times slower than outside of one, so a few
# differentiable steps are unrolled. Many would take too long to compile.
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
    """Denoises by a `lax.scan` over the calls of the denoiser; a few differentiable ones stand behind it, unrolled.

    Args:
        denoise: the conditioned (and guided) denoiser; its output is of the sampler's prediction type.
        sampler: from `make_sampler`.
        noise: standard normal, float32 [B, h, w, C].
        clean_latents: of images to start from, float32 [B, h, w, C]; None to start from noise alone.
        keys: PRNG keys [B] of a stochastic sampler's noise, one a sample, so that batching changes nothing.
        num_differentiable_steps: gradients flow through the last so many calls of the denoiser alone, and these are
            computed again in the backward pass instead of being kept; 0 for none. With None they flow through all
            calls, and everything is kept.
        calls: which calls of the denoiser to make, of S; all of them unless told otherwise.

    Returns:
        Clean latents, float32 [B, h, w, C], still multiplied by the autoencoder's scaling factor; after fewer calls
        than all, latents of the noise level that those lead to.

    Raises:
        InputError: the sampler is stochastic and there are no keys.
    """
    if sampler.is_stochastic and keys is None:
        raise InputError(f"the sampler {type(sampler).__name__} draws noise at every step: it needs keys")

    def step(state: SamplerState, index: jax.Array) -> tuple[SamplerState, None]:
        prediction = denoise(sampler.model_input(state, index), sampler.timesteps[index]).astype(jnp.float32)
        step_noise = _step_noise(keys, index, noise.shape[1:]) if sampler.is_stochastic else None
        return sampler.step(state, index, prediction, step_noise), None

    def step_without_gradient(state: SamplerState, index: jax.Array) -> tuple[SamplerState, None]:
        # Stopped within the loop, so that its steps have no derivatives to compute or to keep.
        return jax.lax.stop_gradient(step(state, index))

    state, indices = sampler.start(noise, clean_latents), jnp.arange(sampler.num_calls)[calls]
    if num_differentiable_steps is None:
        return jax.lax.scan(step, state, indices)[0].latents
    split = max(len(indices) - num_differentiable_steps, 0)
    if split:
        state, _ = jax.lax.scan(step_without_gradient, state, indices[:split])
    rematerialized = jax.checkpoint(step)
    if num_differentiable_steps > _MAX_UNROLLED:
        return jax.lax.scan(rematerialized, state, indices[split:])[0].latents
    for index in indices[split:]:
        state, _ = rematerialized(state, index)
    return state.latents


def _step_noise(keys: jax.Array | None, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of one step, float32 [B, *shape], each sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def invert(
    denoise: Denoiser, schedule: NoiseSchedule, latents: jax.Array, num_steps: int, num_calls: int | None = None
) -> jax.Array:
    """DDIM inversion: the noise from which deterministic DDIM makes about these latents.

    Args:
        denoise: the conditioned denoiser; its output is of the schedule's prediction type.
        schedule: the noise schedule, not traced.
        latents: clean, float32 [B, h, w, C], multiplied by the autoencoder's scaling factor.
        num_steps: between clean latents and noise.
        num_calls: where the latents are not clean, but what deterministic DDIM has made of noise in its first steps: in
            how many. None: in all.

    Returns:
        Noise, float32 [B, h, w, C].

    Raises:
        InputError: see `make_ddim_inversion`.
    """
    first = 0 if num_calls is None else num_steps - num_calls
    return run_sampler(denoise, make_ddim_inversion(schedule, num_steps), latents, calls=slice(first, None))
