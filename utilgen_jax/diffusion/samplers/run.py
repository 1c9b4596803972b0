"""The sampling loop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from utilgen_jax.diffusion.samplers.ddim import make_ddim_inversion
from utilgen_jax.diffusion.samplers.guidance import Denoiser
from utilgen_jax.diffusion.samplers.sampler import Sampler, SamplerState
from utilgen_jax.diffusion.schedules import NoiseSchedule
from utilgen_jax.errors import InputError
from utilgen_jax.types import PyTree

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
    frozen: Denoiser | None = None,
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
        frozen: `denoise` without gradients to what it is made of, for the calls before the differentiable ones; None:
            `denoise`. Gradients are the same; with it JAX does not trace derivatives that are then left out.

    Returns:
        Clean latents, float32 [B, h, w, C], multiplied by the autoencoder's scaling factor; or the noisy latents after
        the last of fewer calls.

    Raises:
        InputError: the sampler is stochastic and there are no keys.
    """
    state, indices = _start(sampler, noise, clean_latents, keys, calls)
    frozen_step, step = (_make_step(each, sampler, noise.shape[1:], keys) for each in (frozen or denoise, denoise))
    return _run(frozen_step, step, state, indices, num_differentiable_steps).latents


def run_sampler_beside(
    denoise: Denoiser,
    last_denoise: Callable[[jax.Array, jax.Array], tuple[jax.Array, PyTree]],
    sampler: Sampler,
    noise: jax.Array,
    *,
    keys: jax.Array | None = None,
    num_differentiable_steps: int | None = None,
    frozen: Denoiser | None = None,
) -> tuple[jax.Array, PyTree]:
    """`run_sampler`, the last call of which tells something beside, such as predictions for other latents.

    Args:
        denoise, sampler, noise, keys, num_differentiable_steps, frozen: see `run_sampler`.
        last_denoise: denoiser of the last call: (latents, timestep) -> (output, what it tells).

    Returns:
        (clean latents, what the last call told).
    """
    state, indices = _start(sampler, noise, None, keys, slice(None))
    frozen_step, step = (_make_step(each, sampler, noise.shape[1:], keys) for each in (frozen or denoise, denoise))
    before_last = None if num_differentiable_steps is None else num_differentiable_steps - 1
    state = _run(frozen_step, step, state, indices[:-1], before_last)
    last = indices[-1]
    output, told = last_denoise(sampler.model_input(state, last), sampler.timesteps[last])
    return _advance(sampler, noise.shape[1:], keys, state, last, output).latents, told


Step = Callable[[SamplerState, jax.Array], SamplerState]


def _start(
    sampler: Sampler,
    noise: jax.Array,
    clean_latents: jax.Array | None,
    keys: jax.Array | None,
    calls: slice,
) -> tuple[SamplerState, jax.Array]:
    """The state before the first call, and the numbers of the calls."""
    if sampler.is_stochastic and keys is None:
        raise InputError(f"the sampler {type(sampler).__name__} is stochastic: it needs keys")
    return sampler.start(noise, clean_latents), jnp.arange(sampler.num_calls)[calls]


def _make_step(denoise: Denoiser, sampler: Sampler, shape: tuple[int, ...], keys: jax.Array | None) -> Step:
    """What a call makes of a state."""

    def step(state: SamplerState, index: jax.Array) -> SamplerState:
        output = denoise(sampler.model_input(state, index), sampler.timesteps[index])
        return _advance(sampler, shape, keys, state, index, output)

    return step


def _advance(
    sampler: Sampler,
    shape: tuple[int, ...],
    keys: jax.Array | None,
    state: SamplerState,
    index: jax.Array,
    output: jax.Array,
) -> SamplerState:
    """The state after a call of the denoiser, of its output."""
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    step_noise = _step_noise(keys, index, shape) if sampler.is_stochastic else None
    return sampler.step(state, index, output, step_noise)


def _run(
    frozen_step: Step, step: Step, state: SamplerState, indices: jax.Array, num_differentiable_steps: int | None
) -> SamplerState:
    """Calls in turn, the last `num_differentiable_steps` of them (None: all) with gradients."""

    def scan(step: Step, state: SamplerState, indices: jax.Array) -> SamplerState:
        return jax.lax.scan(lambda state, index: (step(state, index), None), state, indices)[0]

    def step_without_gradient(state: SamplerState, index: jax.Array) -> SamplerState:
        # Stopping gradients inside the loop avoids computing and storing derivatives of its steps.
        return jax.lax.stop_gradient(frozen_step(state, index))

    if num_differentiable_steps is None:
        return scan(step, state, indices)
    split = max(len(indices) - num_differentiable_steps, 0)
    if split:
        state = scan(step_without_gradient, jax.lax.stop_gradient(state), indices[:split])
    # What a single step keeps is used next; computing it again would save little.
    differentiable_step = step if num_differentiable_steps == 1 else jax.checkpoint(step)
    if num_differentiable_steps > _MAX_UNROLLED:
        return scan(differentiable_step, state, indices[split:])
    for index in indices[split:]:
        state = differentiable_step(state, index)
    return state


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
