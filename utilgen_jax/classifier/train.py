"""Trains and applies the downstream classifier: every row of a comparison goes through here, with the same config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.data.augment.randaugment import randaugment
from utilgen_jax.data.images import to_float, to_uint8
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.sharding import init_sharded, place, split_batch, to_host

Params = Any
Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained; the same for all methods, or a comparison means nothing.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        synthetic_fraction: part of a batch that is synthetic, where there are synthetic images; 1: synthetic ones only.
        learning_rate: peak, after a warm-up of 5 % of the steps; cosine decay to zero.
        weight_decay: decoupled (AdamW).
        label_smoothing: share of the target spread over all classes.
        max_shift: a random shift of at most so many pixels each way; what is shifted in repeats the edge.
        augmentation: "none", or "randaugment", after the shift; of training alone, not of a pool's valuation.
        mixing: key of `batch_mixing.MIXINGS`, of the images of a batch and their targets.
        mixing_alpha: of its Beta distribution.
        loss: "softmax", or "balanced_softmax", which reckons with the classes' numbers of real images.
    """

    steps: int
    batch_size: int
    synthetic_fraction: float
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    max_shift: int
    augmentation: str = "none"
    mixing: str = "none"
    mixing_alpha: float = 1.0
    loss: str = "softmax"

    @property
    def num_synthetic(self) -> int:
        """Synthetic images in a batch: at least one, and at least one real beside them, unless all are asked for."""
        most = self.batch_size if self.synthetic_fraction == 1 else self.batch_size - 1
        return min(max(round(self.batch_size * self.synthetic_fraction), 1), most)


@struct.dataclass
class TrainingSet:
    """Labelled images in device memory.

    Attributes:
        images: float32 [N, H, W, C] in [-1, 1].
        labels: int32 [N].
        weights: float32 [N], mean 1: how much each counts.
        soft_labels: float32 [N, K], what is trained towards in place of the labels; None: the labels themselves.
        attributes: float32 [N, A], what the generator was asked for, see `Examples`; None: not known.
    """

    images: jax.Array
    labels: jax.Array
    weights: jax.Array
    soft_labels: jax.Array | None = None
    attributes: jax.Array | None = None

    def take(self, indices: Array) -> TrainingSet:
        """Some of the images, in the order of `indices` [n]."""
        return jax.tree.map(lambda leaf: leaf[indices], self)

    def targets(self, num_classes: int) -> jax.Array:
        """What is trained towards, float32 [N, K]."""
        return jax.nn.one_hot(self.labels, num_classes) if self.soft_labels is None else self.soft_labels


def concatenate(first: TrainingSet, second: TrainingSet) -> TrainingSet:
    """One set after the other; what only one has is made up: labels as soft ones, attributes of zeros."""
    for some in (first.soft_labels, second.soft_labels):
        if some is not None:
            first, second = (
                dataclasses.replace(part, soft_labels=part.targets(some.shape[-1])) for part in (first, second)
            )
            break
    for some in (first.attributes, second.attributes):
        if some is not None:
            nothing = [jnp.zeros((part.labels.shape[0], some.shape[-1])) for part in (first, second)]
            first, second = (
                dataclasses.replace(part, attributes=zeros if part.attributes is None else part.attributes)
                for part, zeros in zip((first, second), nothing, strict=True)
            )
            break
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)


def make_optimizer(config: ClassifierConfig) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay; `eps_root` keeps a lookahead through it differentiable at zero gradients."""
    schedule = warmup_cosine(config.learning_rate, config.steps)
    return optax.adamw(schedule, eps_root=1e-8, weight_decay=config.weight_decay)


def smoothed_cross_entropy(logits: Array, targets: Array, label_smoothing: float) -> jax.Array:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7): [B] of logits and targets, [B, K] each.

    Rows of targets may have any sum, by which the loss is scaled; smoothing leaves it.
    """
    uniform = (label_smoothing / targets.shape[-1]) * jnp.sum(targets, axis=-1, keepdims=True)
    smoothed = (1.0 - label_smoothing) * targets + uniform
    return optax.softmax_cross_entropy(logits, smoothed)


def balance_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits of p_k ∝ n_k exp(z_k), for training on rare and common classes; in testing z itself is used.

    Balanced softmax (Ren et al. 2020, arXiv 2007.10740, eq. 3).

    Args:
        logits: z, float [B, K].
        labels: of the *real* training images, int [N], each class at least once: n_k of them are k.
    """
    return logits + jnp.log(jnp.bincount(labels, length=logits.shape[-1]).astype(logits.dtype))


def random_shift(images: jax.Array, key: jax.Array, max_shift: int) -> jax.Array:
    """Shifts each image of [B, H, W, C] by up to `max_shift` pixels each way, repeating its edge."""
    if max_shift == 0:
        return images
    margin = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def draw_batch(
    config: ClassifierConfig, real: TrainingSet, synthetic: TrainingSet | None, key: jax.Array
) -> TrainingSet:
    """One batch of shifted images, real ones first; drawn with replacement, so a handful of shots fills it too.

    Returns:
        `batch_size` images; where there are synthetic ones, the last `config.num_synthetic` are.
    """
    number = config.num_synthetic if synthetic is not None else 0
    num_real = config.batch_size - number
    batch = real.take(jax.random.randint(jax.random.fold_in(key, 0), (num_real,), 0, real.labels.shape[0]))
    if synthetic is not None:
        chosen = jax.random.randint(jax.random.fold_in(key, 1), (number,), 0, synthetic.labels.shape[0])
        batch = concatenate(batch, synthetic.take(chosen))
    batch = split_batch(batch)
    shifted = random_shift(batch.images, jax.random.fold_in(key, 2), config.max_shift)
    return dataclasses.replace(batch, images=shifted)


_draw_batch = jax.jit(draw_batch, static_argnames="config")


def apply_randaugment(batch: TrainingSet, key: jax.Array) -> TrainingSet:
    """RandAugment of a batch's images, by Pillow and so on the host, as uint8; they come back to where they were.

    Deterministic in the key. With several processes all of them do the same, to the whole batch.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    augmented = to_float(randaugment(to_uint8(to_host(batch.images)), rng))
    return dataclasses.replace(batch, images=place(augmented, batch.images.sharding))


@partial(jax.jit, static_argnames="config", donate_argnames=("params", "optimizer_state"))
def _train_step(
    classifier: Classifier,
    config: ClassifierConfig,
    params: Params,
    optimizer_state: optax.OptState,
    batch: TrainingSet,
    real_labels: jax.Array,
    key: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array]:
    num_classes = jax.eval_shape(classifier.apply, params, batch.images).shape[-1]
    images, targets, weights = batch.images, batch.targets(num_classes), batch.weights
    if config.mixing != "none":
        # An image's weight goes with its targets into the mix: the loss is linear in both.
        targets, weights = weights[:, None] * targets, jnp.ones_like(weights)
        images, targets = MIXINGS[config.mixing](images, targets, jax.random.fold_in(key, 4), config.mixing_alpha)

    def loss_fn(params: Params) -> jax.Array:
        logits = classifier.apply(params, images)
        if config.loss == "balanced_softmax":
            logits = balance_logits(logits, real_labels)
        return jnp.mean(weights * smoothed_cross_entropy(logits, targets, config.label_smoothing))

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, optimizer_state = make_optimizer(config).update(gradients, optimizer_state, params)
    return optax.apply_updates(params, updates), optimizer_state, loss


def init_classifier(classifier: Classifier, image_shape: tuple[int, ...], key: jax.Array) -> Params:
    """Initial parameters for images of `image_shape` (H, W, C): the classifier's own, the rest random."""
    given = frozenset({*classifier.initial, *classifier.frozen.get("params", {})})
    drawn = init_sharded(_make_init(classifier.module, image_shape, given), key)
    return {**init_sharded(_copy, classifier.initial), **drawn}


@cache
def _make_init(module: Any, image_shape: tuple[int, ...], given: frozenset[str]) -> Callable[[jax.Array], Params]:
    """The same function each time: random draws take seconds to compile, and `jax.jit` knows a function by identity."""

    def init(key: jax.Array) -> Params:
        params = module.init(key, jnp.zeros((1, *image_shape)))["params"]
        return {name: scope for name, scope in params.items() if name not in given}

    return init


def _copy(params: Params) -> Params:
    """Training steps take over the memory of the parameters that they are given."""
    return jax.tree.map(jnp.copy, params)


def train_classifier(
    classifier: Classifier,
    config: ClassifierConfig,
    real: TrainingSet,
    synthetic: TrainingSet | None,
    key: jax.Array,
    on_step: Callable[[int, jax.Array], None],
) -> Params:
    """Trains a classifier from its initial parameters.

    Args:
        classifier: what to train.
        config: how.
        real: the real images.
        synthetic: synthetic ones, mixed into each batch; None trains on real ones alone.
        key: of random initial weights, batches and augmentation. Rows of a comparison share it.
        on_step: called after each step with (steps done, loss on the device).

    Returns:
        The trained parameters; what is frozen is not among them.
    """
    params = init_classifier(classifier, real.images.shape[1:], jax.random.fold_in(key, 0))
    optimizer_state = init_sharded(make_optimizer(config).init, params)
    batch_key = jax.random.fold_in(key, 1)
    # Steps are dispatched one by one: XLA's CPU backend is slow on convolution gradients inside a scan.
    for step in range(config.steps):
        step_key = jax.random.fold_in(batch_key, step)
        batch = _draw_batch(config, real, synthetic, step_key)
        if config.augmentation == "randaugment":
            batch = apply_randaugment(batch, jax.random.fold_in(step_key, 5))
        params, optimizer_state, loss = _train_step(
            classifier, config, params, optimizer_state, batch, real.labels, step_key
        )
        on_step(step + 1, loss)
    return params


@jax.jit
def _apply(classifier: Classifier, params: Params, images: jax.Array) -> jax.Array:
    return classifier.apply(params, images)


def predict_logits(classifier: Classifier, params: Params, images: Array, batch_size: int) -> np.ndarray:
    """Logits of all images, in batches of one shape: float32 [N, K] of images float32 [N, H, W, C]."""
    images = to_host(images)
    size = min(batch_size, len(images))
    parts = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
        parts.append(to_host(_apply(classifier, params, padded))[: len(batch)])
    return np.concatenate(parts)
