"""Trains any part of the generator by the denoising loss, on images and beside images of the generator itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, adapter_loras, difficulty_encoder_of
from utilgen_jax.generator.conditioning import embeds_condition, encode_tokens
from utilgen_jax.generator.difficulty_token import append_difficulty
from utilgen_jax.generator.finetune.config import DenoisingConfig
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes, PooledStates, TextStates
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.sharding import init_sharded, split_batch
from utilgen_jax.runtime.training_loop import TrainingLoop


@struct.dataclass
class DenoisingSet:
    """Images to learn from; every leaf is batch-first.

    Attributes:
        latents: clean latents times the scaling factor, float32 [N, h, w, C], see `sampling.encode_to_latents`.
        labels: int32 [N], each image's row in the table of prompts.
        difficulties: measured, float32 [N] in [0, 1]; None if difficulty is not learned.
        class_labels: unCLIP's, float [N, 2E]; None for those of no image, and for any other checkpoint.
    """

    latents: jax.Array
    labels: jax.Array
    difficulties: jax.Array | None = None
    class_labels: jax.Array | None = None

    def take(self, indices: jax.Array | np.ndarray) -> DenoisingSet:
        """Some of the images, in the order of `indices` [n]."""
        return jax.tree.map(lambda leaf: leaf[indices], self)


# Of each class: text states [K], or token ids int [K, T] or [K, 2, T] that are encoded in the step.
Prompts = TextStates
# (checkpoint, what is trained, prompts, batch, key of timesteps and noise, snr_gamma) -> float32 [B]
Loss = Callable[[StableDiffusion, Any, Prompts, DenoisingSet, jax.Array, float | None], jax.Array]


def are_token_ids(prompts: Prompts) -> bool:
    """Whether prompts are token ids."""
    return not isinstance(prompts, PooledStates) and jnp.issubdtype(prompts.dtype, jnp.integer)


@struct.dataclass
class DenoisingTask:
    """The loss to minimise, and all that the trainer draws from.

    Attributes:
        loss: static; a function of a module, so that equal tasks share one compiled step.
        prompts: see `Prompts`.
        examples: the images to learn from.
        prior: images of the generator itself, with the same fields as `examples`; None where the config's
            batches hold none.
    """

    loss: Loss = struct.field(pytree_node=False)
    prompts: Prompts
    examples: DenoisingSet
    prior: DenoisingSet | None


@struct.dataclass
class TrainState:
    """The state of training.

    Attributes:
        step: number of steps done, int32.
        trained: pytree of what is trained.
        optimizer_state: the optimiser's; frozen weights take no memory in it.
    """

    step: jax.Array
    trained: Any
    optimizer_state: optax.OptState


# (state, checkpoint, prompts, batch, key) -> (state, metrics)
TrainStep = Callable[
    [TrainState, StableDiffusion, Prompts, DenoisingSet, jax.Array], tuple[TrainState, dict[str, jax.Array]]
]


def adapter_loss(
    sd: StableDiffusion,
    adapter: Adapter,
    prompts: Prompts,
    batch: DenoisingSet,
    key: jax.Array,
    snr_gamma: float | None = None,
) -> jax.Array:
    """The denoising loss of each image under an adapter: LoRA on UNet and text encoders, difficulty token.

    Args:
        sd: the checkpoint; the dtype of its modules is that of the activations.
        adapter: differentiated.
        prompts: see `Prompts`; a LoRA on a text encoder needs the ids.
        batch: B images; their labels select the prompts.
        key: PRNG key of timesteps and noise.
        snr_gamma: γ of min-SNR weighting, None for none; see `denoising_loss`.

    Returns:
        Float32 [B].

    Raises:
        InputError: a text encoder has a LoRA, and the prompts are text states.
    """
    states = prompts[batch.labels]
    if are_token_ids(prompts):
        states = encode_tokens(sd, states, adapter_loras(adapter))
    elif adapter.text_encoder_lora is not None:
        raise InputError("adapter_loss: a LoRA on the text encoder needs prompts as token ids; text states are fixed")
    is_xl = isinstance(states, PooledStates)
    sizes = ImageSizes.of_latents(sd.architecture, batch.latents.shape) if is_xl else None
    condition = embeds_condition(sd, states, sizes=sizes)
    if adapter.difficulty_encoder is not None and batch.difficulties is not None:
        encoder, embeds = difficulty_encoder_of(adapter.difficulty_encoder), condition.prompt_embeds
        embeds = append_difficulty(encoder, adapter.difficulty_encoder, embeds, batch.labels, batch.difficulties)
        # Nothing is guided here, so that the other branch does not count.
        condition = dataclasses.replace(condition, prompt_embeds=embeds, negative_prompt_embeds=embeds)
    if batch.class_labels is not None:
        condition = dataclasses.replace(condition, class_labels=batch.class_labels)
    denoise = adapter_denoiser(sd, adapter, condition, guidance_scale=1.0)
    return denoising_loss(denoise, sd.schedule, batch.latents, key, snr_gamma)


def init_train_state(trained: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained))


def make_train_step(loss: Loss, optimizer: optax.GradientTransformation, snr_gamma: float | None = None) -> TrainStep:
    """Makes the training step on a given batch, jitted; the state passed to it is donated.

    Args:
        loss: of each image of a batch, such as `adapter_loss`.
        optimizer: as in `init_train_state`.
        snr_gamma: γ of min-SNR weighting, None for none.

    Returns:
        step(state, sd, prompts, batch, key) -> (state, metrics). `key` is folded with the step's number, so one key
        serves a whole run. Metrics are float32 scalars: 'loss', the batch's mean, and 'grad_norm'.
    """

    def step(
        state: TrainState, sd: StableDiffusion, prompts: Prompts, batch: DenoisingSet, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = split_batch(batch)
        step_key = jax.random.fold_in(key, state.step)
        return _update(state, lambda trained: loss(sd, trained, prompts, batch, step_key, snr_gamma), optimizer)

    return jax.jit(step, donate_argnums=0)


def train_by_denoising(
    sd: StableDiffusion,
    task: DenoisingTask,
    trained: Any,
    config: DenoisingConfig,
    key: jax.Array,
    loop: TrainingLoop,
) -> Any:
    """Trains by AdamW, gradients clipped to a norm of 1.

    Args:
        sd: the checkpoint, which stays as it is.
        task: loss, prompts, images to learn from and prior images.
        trained: the start; it is not changed.
        config: steps (its epochs are come to steps before, see `of_images`), batch and learning rate.
        key: PRNG key.
        loop: runs the steps.

    Returns:
        The trained pytree.
    """
    state = init_sharded(lambda tree: init_train_state(jax.tree.map(jnp.copy, tree), _make_optimizer(config)), trained)

    def update(state: TrainState, step: int) -> tuple[TrainState, dict[str, jax.Array]]:
        del step  # the state has it
        state, mean_loss = _draw_and_update(config, state, sd, task, key)
        return state, {"loss": mean_loss}

    return loop.run(state, config.steps, update).trained


def _make_optimizer(config: DenoisingConfig) -> optax.GradientTransformation:
    schedule = warmup_cosine(config.learning_rate, config.steps, config.warmup_steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _draw_and_update(
    config: DenoisingConfig, state: TrainState, sd: StableDiffusion, task: DenoisingTask, key: jax.Array
) -> tuple[TrainState, jax.Array]:
    """A step on a batch that is drawn with replacement; returns (state, mean loss)."""
    key = jax.random.fold_in(key, state.step)
    parts = []
    sources = (task.examples, config.batch_size - config.num_prior), (task.prior, config.num_prior)
    for use, (source, number) in enumerate(sources):
        if source is None:
            continue
        chosen = jax.random.randint(jax.random.fold_in(key, use), (number,), 0, source.labels.shape[0])
        parts.append(source.take(chosen))
    batch = split_batch(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    noise_key = jax.random.fold_in(key, 2)
    snr_gamma = config.snr_gamma or None
    state, metrics = _update(
        state,
        lambda trained: task.loss(sd, trained, task.prompts, batch, noise_key, snr_gamma),
        _make_optimizer(config),
    )
    return state, metrics["loss"]


def _update(
    state: TrainState, losses: Callable[[Any], jax.Array], optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The training step of all denoising trainers: one step of the optimiser on the mean of `losses`."""
    value, gradient = jax.value_and_grad(lambda trained: jnp.mean(losses(trained)))(state.trained)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, trained, optimizer_state), metrics
