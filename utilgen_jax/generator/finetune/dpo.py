"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908): more of a pool's useful images, fewer of its useless ones.

UtilGen's model level (arXiv 2510.24262) takes it in rounds, each on a pool of its own.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.diffusion.losses import denoising_loss, diffusion_dpo_loss
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, apply_adapter
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.finetune.config import DpoConfig
from utilgen_jax.generator.finetune.denoising import TrainState, init_train_state
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes, TextStates
from utilgen_jax.models.lora import init_lora
from utilgen_jax.runtime.loops import num_parts
from utilgen_jax.runtime.sharding import init_sharded
from utilgen_jax.runtime.training_loop import TrainingLoop


@struct.dataclass
class DpoPairs:
    """A pool's images and their pairs.

    Attributes:
        latents: clean latents times the scaling factor, float32 [M, h, w, C].
        labels: int32 [M].
        prompt_embeds: text states of the P different prompts.
        prompts: the prompt of each image, int32 [M].
        winners, losers: int32 [N] each, the pairs, see `preference_pairs`.
    """

    latents: jax.Array
    labels: jax.Array
    prompt_embeds: TextStates
    prompts: jax.Array
    winners: jax.Array
    losers: jax.Array


@struct.dataclass
class DpoBatch:
    """The pairs of one step.

    Attributes:
        sample_inputs: what the M images were generated from.
        latents: clean latents of these images times the scaling factor, float32 [M, h, w, C], see
            `sampling.encode_to_latents`.
        winners, losers: int [P] each, places in the M images.
    """

    sample_inputs: SampleInputs
    latents: jax.Array
    winners: jax.Array | np.ndarray
    losers: jax.Array | np.ndarray


def preference_pairs(
    utilities: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, fraction: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs images of the same class, one of its most and one of its least useful ones. On the host.

    Args:
        utilities: float [M].
        labels: int [M].
        fraction: part of each class that wins, and that loses, in (0, 0.5]; at least one image of each.

    Returns:
        (winners, losers), int64 [P] each: the best against the worst, the second best against the second worst ...

    Raises:
        InputError: the fraction is out of range, or no class has two images.
    """
    if not 0.0 < fraction <= 0.5:
        raise InputError(f"preference_pairs: fraction={fraction} must be above 0 and at most 0.5")
    utilities, labels = np.asarray(utilities), np.asarray(labels)
    winners, losers = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        rising = members[np.argsort(utilities[members], kind="stable")]
        number = max(int(fraction * len(members)), 1)
        winners.append(rising[::-1][:number])
        losers.append(rising[:number])
    if not winners:
        raise InputError("preference_pairs: no class has two images to compare; generate more of each class")
    return np.concatenate(winners), np.concatenate(losers)


def train_dpo(
    sd: StableDiffusion,
    adapter: Adapter,
    pairs: DpoPairs,
    config: DpoConfig,
    key: jax.Array,
    loop: TrainingLoop,
) -> Adapter:
    """Trains the adapter's LoRA for one round, from the end of the round before.

    Args:
        sd: the checkpoint, which stays as it is.
        adapter: the start, and the reference that the loss pulls towards; it gets a LoRA if it has none.
        pairs: the pool's images and pairs.
        config: steps, batch, learning rate, rank and β.
        key: PRNG key.
        loop: runs the steps; it tells of `pair_accuracy` too, the fraction of the batch's pairs whose winner the
            adapter prefers more than the reference does.

    Returns:
        The adapter.
    """
    if adapter.unet_lora is None:
        init_key = jax.random.fold_in(key, 0)
        lora = init_sharded(lambda key: init_lora(sd.params["unet"], key, rank=config.rank).factors, init_key)
        adapter = dataclasses.replace(adapter, unet_lora=lora)
    reference = adapter
    state = init_sharded(
        lambda tree: init_train_state(jax.tree.map(jnp.copy, tree), make_dpo_optimizer(config)), adapter
    )
    batch_key = jax.random.fold_in(key, 1)

    def update(state: TrainState, step: int) -> tuple[TrainState, dict[str, jax.Array]]:
        del step  # the state has it
        state, loss, accuracy = dpo_step(config, state, reference, sd, pairs, batch_key)
        return state, {"loss": loss, "pair_accuracy": accuracy}

    return loop.run(state, config.steps, update).trained


def make_dpo_optimizer(config: DpoConfig) -> optax.GradientTransformation:
    """Adam, gradients clipped to a norm of 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def dpo_step(
    config: DpoConfig, state: TrainState, reference: Adapter, sd: StableDiffusion, pairs: DpoPairs, key: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    """A step on pairs that are drawn with replacement; returns (state, loss, pair accuracy)."""
    key = jax.random.fold_in(key, state.step)
    draw_key, noise_key, unused_key = (jax.random.fold_in(key, use) for use in range(3))
    chosen = jax.random.randint(draw_key, (config.batch_size,), 0, pairs.winners.shape[0])

    def gradient_of(chosen: jax.Array, noise_key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Adapter]:
        batch = _batch_of(sd, pairs, chosen, unused_key)

        def mean_loss(adapter: Adapter) -> tuple[jax.Array, jax.Array]:
            losses = dpo_losses(sd, adapter, reference, batch, noise_key, config.beta)
            return jnp.mean(losses), jnp.mean(losses < jnp.log(2.0))

        return jax.value_and_grad(mean_loss, has_aux=True)(state.trained)

    parts = num_parts(config.batch_size, config.micro_batch_size)
    if parts == 1:
        (loss, accuracy), gradient = gradient_of(chosen, noise_key)
    else:
        keys = jax.random.split(noise_key, parts)
        results = jax.lax.map(lambda part: gradient_of(*part), (chosen.reshape(parts, -1), keys))
        (loss, accuracy), gradient = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), results)
    updates, optimizer_state = make_dpo_optimizer(config).update(gradient, state.optimizer_state, state.trained)
    return (
        TrainState(state.step + 1, optax.apply_updates(state.trained, updates), optimizer_state),
        loss,
        accuracy,
    )


def _batch_of(sd: StableDiffusion, pairs: DpoPairs, chosen: jax.Array, unused_key: jax.Array) -> DpoBatch:
    """The pairs of some places, int [P]: all winners, then all losers."""
    size = len(chosen)
    members = jnp.concatenate([pairs.winners[chosen], pairs.losers[chosen]])
    latents, labels = pairs.latents[members], pairs.labels[members]
    sizes = ImageSizes.of_latents(sd.architecture, latents.shape)
    sample_inputs = SampleInputs(
        condition=embeds_condition(sd, pairs.prompt_embeds[pairs.prompts[members]], sizes=sizes),
        latents=latents,
        labels=labels,
        rows=labels,
        keys=jax.random.split(unused_key, 2 * size),  # of a sampler's noise; the loss runs none
    )
    places = np.arange(2 * size)
    return DpoBatch(sample_inputs, latents, winners=places[:size], losers=places[size:])


def dpo_losses(
    sd: StableDiffusion,
    adapter: Adapter,
    reference: Adapter,
    batch: DpoBatch,
    key: jax.Array,
    beta: float = 2000.0,
) -> jax.Array:
    """The loss of each pair, at one random timestep and noise, the same for both of a pair.

    Args:
        sd: the checkpoint.
        adapter: differentiated: LoRA, prompts and difficulty; the starting noise has no part in it.
        reference: the adapter at the start of the round.
        batch: images and pairs.
        key: PRNG key of timesteps and noise.
        beta: strength of the pull to the reference.

    Returns:
        Float32 [P]; below log 2 where the adapter prefers the winner more than the reference does.
    """
    # Both of a pair at once: of one key they get one noise, and the UNet stands in the program once.
    pairs = jnp.stack([jnp.asarray(batch.winners), jnp.asarray(batch.losers)])

    def errors(adapter: Adapter) -> jax.Array:
        def errors_of(chosen: jax.Array) -> jax.Array:
            condition, _ = apply_adapter(adapter, jax.tree.map(lambda leaf: leaf[chosen], batch.sample_inputs))
            denoise = adapter_denoiser(sd, adapter, condition, guidance_scale=1.0)
            return denoising_loss(denoise, sd.schedule, batch.latents[chosen], key)

        return jax.vmap(errors_of)(pairs)

    own, others = errors(adapter), errors(jax.lax.stop_gradient(reference))
    return diffusion_dpo_loss(own[0], own[1], others[0], others[1], beta)
