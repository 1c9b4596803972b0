"""Trains and applies the downstream classifier: every method of a comparison goes through here, with one config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.classifier.batches import make_draw
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import StepKey
from utilgen_jax.classifier.losses import balance_logits, smoothed_cross_entropy
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.data.streamed_images import StreamedImages
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.sharding import batch_sharding, init_sharded, place, to_host
from utilgen_jax.runtime.training_loop import TrainingLoop, Update
from utilgen_jax.types import Array, Params

TrainingState = tuple[Params, optax.OptState]


def train_classifier(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    synthetic: Examples | None,
    key: jax.Array,
    loop: TrainingLoop,
    teachers: Params | None = None,
) -> Params:
    """Trains a classifier from its initial parameters.

    Args:
        classifier: the network.
        config: steps, optimiser, augmentation.
        real: the real images.
        synthetic: synthetic images to mix into each batch; None trains on real ones alone.
        key: PRNG key of initial weights, batches and augmentation. Methods of a comparison share it.
        loop: runs the steps.
        teachers: classifiers of the same network, their parameters stacked [T, ...], that label the images of each
            batch, see `make_update`; None: they keep their labels.

    Returns:
        The trained parameters; frozen ones are not among them.
    """
    params = init_classifier(classifier, real.inputs.shape[1:], jax.random.fold_in(key, 0))
    update = make_update(classifier, config, real, synthetic, jax.random.fold_in(key, 1), teachers)
    params, _ = loop.run(init_training(config, params), config.steps, update)
    return params


def init_training(config: ClassifierConfig, params: Params) -> TrainingState:
    """The state of a training before its first step: parameters, and the optimiser's state."""
    return params, init_sharded(make_init_optimizer(config.optimizer), params)


def make_update(
    classifier: Classifier,
    config: ClassifierConfig,
    real: Examples,
    synthetic: Examples | None,
    key: jax.Array,
    teachers: Params | None = None,
) -> Update[TrainingState]:
    """Makes the steps of a training, each of which takes over the memory of the state before it.

    With teachers, the label of an image is what they say, in the mean, of the very image that is learnt from, shifted
    and mixed (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent", arXiv 2106.05237).
    The loss is the plain softmax then, whatever the config's.

    Args:
        classifier, config, real, synthetic, teachers: see `train_classifier`.
        key: PRNG key of batches and augmentation.
    """
    program = _read_by_the_step(config)
    if teachers is not None:
        # A balanced softmax undoes the labels' frequencies, which the teachers' opinions do not have.
        program = dataclasses.replace(program, loss="softmax")
    rates = _learning_rates(config.learning_rate, config.steps)
    class_counts = count_classes(real)
    draw = make_draw(config, real, synthetic, key)

    def update(state: TrainingState, step: int) -> tuple[TrainingState, dict[str, jax.Array]]:
        batch = draw(step)
        images, targets = batch.inputs, _weighted_targets(batch)
        if config.mixing != "none":
            images, targets = _mix(program, images, targets, key, step)
        if teachers is not None:
            targets = _teach(classifier, teachers, images, targets)
        params, optimizer_state, loss = learning_step(
            classifier, program, *state, images, targets, class_counts, rates[step]
        )
        return (params, optimizer_state), {"loss": loss}

    return update


def _read_by_the_step(config: ClassifierConfig) -> ClassifierConfig:
    """What a training step depends on beside its learning rate, see `batches`."""
    names = ("mixing", "mixing_alpha", "label_smoothing", "loss", "weight_decay", "optimizer")
    return ClassifierConfig(**{name: getattr(config, name) for name in names})


@jax.jit
def _weighted_targets(batch: Examples) -> jax.Array:
    """Targets float32 [B, K], each row with the image's weight for its sum: the loss is linear in both."""
    targets = batch.dense().targets
    return targets if batch.weights is None else batch.weights[:, None] * targets


@partial(jax.jit, static_argnames="config")
def _mix(
    config: ClassifierConfig, images: jax.Array, targets: jax.Array, key: jax.Array, step: int
) -> tuple[jax.Array, jax.Array]:
    mixing_key = jax.random.fold_in(jax.random.fold_in(key, step), StepKey.MIXING)
    return MIXINGS[config.mixing](images, targets, mixing_key, config.mixing_alpha)


@jax.jit
def _teach(classifier: Classifier, teachers: Params, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Targets by what stacked classifiers [T, ...] say in the mean, float32 [B, K]; each row keeps its sum."""

    def predict(params: Params) -> jax.Array:
        return jax.nn.softmax(classifier.apply(params, images).astype(jnp.float32))

    # In turn: it takes less memory, and on CPUs less time than `vmap`.
    return jnp.sum(targets, -1, keepdims=True) * jnp.mean(jax.lax.map(predict, teachers), axis=0)


@partial(jax.jit, static_argnames="config", donate_argnames=("params", "optimizer_state"))
def learning_step(
    classifier: Classifier,
    config: ClassifierConfig,
    params: Params,
    optimizer_state: optax.OptState,
    images: jax.Array,
    targets: jax.Array,
    class_counts: jax.Array,
    rate: float,
) -> tuple[Params, optax.OptState, jax.Array]:
    """A step of the optimiser at a learning rate.

    Args:
        classifier: the network.
        config: loss, smoothing and optimiser.
        params, optimizer_state: taken over.
        images: float32 [B, H, W, C].
        targets: float32 [B, K], weighted.
        class_counts: of the real images, [K].
        rate: the learning rate.

    Returns:
        (parameters, the optimiser's state, loss).
    """

    def loss_fn(params: Params) -> jax.Array:
        logits = training_logits(classifier, config, class_counts, params, images)
        return jnp.mean(smoothed_cross_entropy(logits, targets, config.label_smoothing))

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, optimizer_state = _make_optimizer(config, rate).update(gradients, optimizer_state, params)
    return optax.apply_updates(params, updates), optimizer_state, loss


def training_logits(
    classifier: Classifier, config: ClassifierConfig, class_counts: jax.Array, params: Params, images: jax.Array
) -> jax.Array:
    """The logits [B, K] that the loss sees; class_counts [K] of the real images are for the balanced softmax."""
    return logits_of_loss(config, class_counts, classifier.apply(params, images))


def logits_of_loss(config: ClassifierConfig, class_counts: jax.Array, logits: jax.Array) -> jax.Array:
    """The same of the network's own logits [B, K]."""
    return balance_logits(logits, class_counts) if config.loss == "balanced_softmax" else logits


def make_optimizer(config: ClassifierConfig) -> optax.GradientTransformation:
    """Returns AdamW or SGD, with warm-up and cosine decay; it can be looked through, see `bilevel.hypergradients`."""
    return _make_optimizer(config, warmup_cosine(config.learning_rate, config.steps))


@cache
def _learning_rates(peak: float, steps: int) -> np.ndarray:
    """Of each step: numbers and no schedule, so that trainings of other lengths share a program."""
    return np.asarray(jax.jit(warmup_cosine(peak, steps))(np.arange(steps)))


@cache
def make_init_optimizer(optimizer: str) -> Callable[[Params], optax.OptState]:
    """What makes the state of an optimiser of parameters; the same function each time, see `_make_init`."""
    return _make_optimizer(ClassifierConfig(optimizer=optimizer), 0.0).init


def _make_optimizer(config: ClassifierConfig, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    if config.optimizer == "sgd":
        return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9))
    # `eps_root` keeps the derivative of a step finite where a gradient is zero.
    return optax.adamw(rate, eps_root=1e-8, weight_decay=config.weight_decay)


def init_classifier(classifier: Classifier, image_shape: tuple[int, ...], key: jax.Array) -> Params:
    """Returns initial parameters for images of `image_shape` (H, W, C): the classifier's own, the rest random."""
    given = frozenset({*classifier.initial, *classifier.frozen.get("params", {})})
    drawn = init_sharded(_make_init(classifier.module, image_shape, given), key)
    return {**copy_params(classifier.initial), **drawn}


@cache
def _make_init(module: Any, image_shape: tuple[int, ...], given: frozenset[str]) -> Callable[[jax.Array], Params]:
    """The same function each time: random draws take seconds to compile, and `jax.jit` knows a function by identity."""

    def init(key: jax.Array) -> Params:
        params = module.init(key, jnp.zeros((1, *image_shape)))["params"]
        return {name: scope for name, scope in params.items() if name not in given}

    return init


def copy_params(params: Params) -> Params:
    """A copy to train on: steps take over the memory of the parameters that they are given."""
    return init_sharded(_copy, params)


def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


@jax.jit
def _apply(classifier: Classifier, params: Params, images: jax.Array) -> jax.Array:
    return classifier.apply(params, images)


@jax.jit
def _features(classifier: Classifier, params: Params, images: jax.Array) -> jax.Array:
    return classifier.features(params, images)


def predict_logits(
    classifier: Classifier, params: Params, images: Array | StreamedImages, batch_size: int
) -> np.ndarray:
    """Returns the logits of images [N, H, W, C], in [-1, 1] or bytes, in batches of one shape: float32 [N, K]."""
    return _in_batches(partial(_apply, classifier, params), images, batch_size)


def predict_features(
    classifier: Classifier, params: Params, images: Array | StreamedImages, batch_size: int
) -> np.ndarray:
    """Returns what the last layer is given of such images, in batches of one shape: float32 [N, D]."""
    return _in_batches(partial(_features, classifier, params), images, batch_size)


def _in_batches(function: Callable[[Array], jax.Array], images: Array | StreamedImages, batch_size: int) -> np.ndarray:
    size = min(batch_size, len(images))
    parts = []
    if isinstance(images, StreamedImages):
        places = np.arange(-(-len(images) // size) * size).reshape(-1, size)
        for read in images.batches(np.minimum(places, len(images) - 1)):
            parts.append(to_host(function(read)))
        return np.concatenate(parts)[: len(images)]
    held, sharding = to_host(images), batch_sharding(size)
    for start in range(0, len(held), size):
        batch = held[start : start + size]
        padded = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
        parts.append(to_host(function(place(padded, sharding)))[: len(batch)])
    return np.concatenate(parts)
