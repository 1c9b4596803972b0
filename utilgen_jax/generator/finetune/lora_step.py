"""Fine-tunes a LoRA of the generator on images and their prompts, by the denoising loss; the weights stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import encode_tokens
from utilgen_jax.generator.loading import Generator, Params, component_variables
from utilgen_jax.models.lora import Lora
from utilgen_jax.runtime.sharding import split_batch

# {component: {layer: {'down': ..., 'up': ...}}}: all that is trained.
Factors = dict[str, Any]


@struct.dataclass
class LoraBatch:
    """Images to learn from, and what they show; every array is batch-first.

    Attributes:
        latents: clean latents times the scaling factor, float32 [B, h, w, C], see `sampling.encode_to_latents`.
        input_ids: prompts as token ids int [B, T], encoded in the step; needed to train a LoRA on the text encoder.
        prompt_embeds: prompts as CLIP text states [B, T, D], encoded before; in place of `input_ids`.
        class_labels: unCLIP's [B, 2E]; None where the UNet has no class embedding.
    """

    latents: jax.Array
    input_ids: jax.Array | None = None
    prompt_embeds: jax.Array | None = None
    class_labels: jax.Array | None = None


@struct.dataclass
class LoraState:
    """The state of training, from `init_lora_state`.

    Attributes:
        step: number of steps done, int32.
        loras: by component, 'unet' and (if it is to be trained) 'text_encoder'.
        opt_state: the optimiser's, of the factors alone.
    """

    step: jax.Array
    loras: dict[str, Lora]
    opt_state: optax.OptState


LoraStep = Callable[[LoraState, Params, LoraBatch, jax.Array], tuple[LoraState, dict[str, jax.Array]]]


def init_lora_state(loras: dict[str, Lora], optimizer: optax.GradientTransformation) -> LoraState:
    """The state before the first step. The optimiser sees the factors only: frozen weights take no memory in it."""
    return LoraState(step=jnp.zeros((), jnp.int32), loras=loras, opt_state=optimizer.init(_factors(loras)))


def lora_loss(
    generator: Generator,
    params: Params,
    loras: dict[str, Lora],
    batch: LoraBatch,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """The denoising loss of the generator with a LoRA.

    Args:
        generator: the checkpoint's architecture; its dtype is that of the activations.
        params: its weights.
        loras: by component.
        batch: B images.
        key: PRNG key of timesteps and noise.
        snr_gamma: of min-SNR weighting, None for none; see `denoising_loss`.

    Returns:
        Loss per image, float32 [B].

    Raises:
        InputError: prompts are given in both ways or in none, or without token ids for the text encoder's LoRA.
    """
    if (batch.input_ids is None) == (batch.prompt_embeds is None):
        raise InputError("LoraBatch: give the prompts as input_ids or as prompt_embeds")
    if batch.input_ids is None and "text_encoder" in loras:
        raise InputError("LoraBatch: a LoRA on the text encoder needs input_ids; prompt_embeds do not depend on it")
    embeds = batch.prompt_embeds
    if batch.input_ids is not None:
        embeds = encode_tokens(generator, params, batch.input_ids, loras)
    variables = component_variables(params, loras, "unet")

    def denoise(noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
        return generator.unet.apply(variables, noisy, timesteps, embeds, batch.class_labels)

    return denoising_loss(denoise, generator.schedule, batch.latents, key, snr_gamma)


def make_lora_step(
    generator: Generator, optimizer: optax.GradientTransformation, snr_gamma: float | None = None
) -> LoraStep:
    """Makes the training step, jitted; the state passed to it is donated and must not be used again.

    One step a call, not a scan over steps: XLA's CPU backend is many times slower at a convolution's weight gradient
    inside a loop.

    Args:
        generator: the checkpoint's architecture.
        optimizer: as in `init_lora_state`.
        snr_gamma: of min-SNR weighting, None for none.

    Returns:
        step(state, params, batch, key) -> (state, metrics). `key` is folded with the step's number, so one key serves a
        whole run. Metrics are float32 scalars: 'loss', the batch's mean, and 'grad_norm'.
    """

    def step(
        state: LoraState, params: Params, batch: LoraBatch, key: jax.Array
    ) -> tuple[LoraState, dict[str, jax.Array]]:
        batch = split_batch(batch)

        def mean_loss(factors: Factors) -> jax.Array:
            loras = _with_factors(state.loras, factors)
            step_key = jax.random.fold_in(key, state.step)
            return jnp.mean(lora_loss(generator, params, loras, batch, step_key, snr_gamma))

        factors = _factors(state.loras)
        loss, gradient = jax.value_and_grad(mean_loss)(factors)
        updates, opt_state = optimizer.update(gradient, state.opt_state, factors)
        loras = _with_factors(state.loras, optax.apply_updates(factors, updates))
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
        return LoraState(step=state.step + 1, loras=loras, opt_state=opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def _factors(loras: dict[str, Lora]) -> Factors:
    return {name: lora.factors for name, lora in loras.items()}


def _with_factors(loras: dict[str, Lora], factors: Factors) -> dict[str, Lora]:
    return {name: Lora(factors=factors[name], scales=lora.scales) for name, lora in loras.items()}
