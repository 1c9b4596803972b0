"""Trains the final classifier while SAFLEX weighs and relabels its synthetic images (ICLR 2024, arXiv 2410.02512).

Each step asks which label of which image of the batch would lower the loss on validation images, and is then taken
with the weights and soft labels that follow. Asked is what a step of this very training would do, optimiser, schedule
and mixing included.

Validation comes out of the shots. An image that was just trained on says little, so the shots are divided into folds:
step t trains on the real images of the other folds and validates on fold t mod F. Where the classifier trains on
synthetic images alone, all shots validate.

One step says little (measured: README.md). Two averages, both ours, tell more: with `SaflexConfig.memory` an image's
soft label starts, the next time it is drawn, from where the earlier steps have moved it; with `validation_decay`, 0 by
default, the gradient of the validation loss is an average over steps, where real images are trained on too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import saflex
from utilgen_jax.bilevel.weightings.saflex import at_zero_influence
from utilgen_jax.classifier.batches import draw_ahead, make_draw
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import StepKey, draw_synthetic, random_shift
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import init_classifier, make_optimizer, training_logits
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import replicate, to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params
from utilgen_jax.valuation.config import SaflexConfig
from utilgen_jax.valuation.cross_fit import init_state, smoothed

_LEAST = 1e-12  # probability that memory keeps of a class; less is zero in a float32 before long


@dataclasses.dataclass(frozen=True)
class SaflexProgram:
    """What the compiled step depends on: the classifier's training, and SAFLEX's settings."""

    config: ClassifierConfig
    saflex: SaflexConfig

    @property
    def plain_steps(self) -> int:
        """Steps before the first that is weighed and relabelled."""
        return round(self.saflex.plain_fraction * self.config.steps)


@struct.dataclass
class SaflexClassifier:
    """What training has made.

    Attributes:
        params: of the classifier.
        weights: float32 [N] in [0, 1], of each image of the pool: the share of its draws in which its weight was not 0;
            1 for an image that was never drawn after the plain steps.
        soft_labels: float32 [N, K], the mean over its draws; its label for an image that was never drawn after them.
    """

    params: Params
    weights: np.ndarray
    soft_labels: np.ndarray


@struct.dataclass
class _PoolLabels:
    """What training has found out about the N images of the pool.

    Attributes:
        labels: float32 [N, K], what each image keeps at zero influence the next time it is drawn.
        draws: float32 [N], how often it was drawn.
        weights: float32 [N], in how many of them its weight was not 0.
        soft_labels: float32 [N, K], the sum over its draws.
    """

    labels: jax.Array
    draws: jax.Array
    weights: jax.Array
    soft_labels: jax.Array


_State = tuple[BilevelState, _PoolLabels]


def train_saflex(
    classifier: Classifier,
    program: SaflexProgram,
    shots: tuple[Examples, Sequence[Fold]],
    pool: Examples,
    key: jax.Array,
    loop: TrainingLoop,
) -> SaflexClassifier:
    """Trains a classifier as `train_classifier` does, with weights and labels of the synthetic images by SAFLEX.

    Args:
        classifier: the network.
        program: settings.
        shots: the real images and their folds.
        pool: the synthetic images, with hard labels; their weights are not read.
        key: PRNG key, used as by `train_classifier`: the plain steps are the same.
        loop: runs the steps; it tells of `first_nonfinite` too, and of the validation loss of steps that weigh and
            relabel.
    """
    config, (real, folds) = program.config, shots
    trains = [fold.train_indices for fold in folds]
    held_out = [fold.validation_indices for fold in folds]
    if config.is_synthetic_only:
        trains = held_out = [np.arange(len(real))]
    labels = pool.dense().targets
    prior = at_zero_influence(labels, program.saflex.label_probability)
    # A copy: a step takes over the memory of what it is given.
    found = replicate(_PoolLabels(jnp.copy(prior), jnp.zeros(len(pool)), jnp.zeros(len(pool)), jnp.zeros_like(labels)))
    init_key, batch_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    params = init_classifier(classifier, real.inputs.shape[1:], init_key)
    # Labels that follow late run away where no real image holds the classifier (measured: README.md).
    decay = 0.0 if config.is_synthetic_only else program.saflex.validation_decay
    state = init_state(params, make_optimizer(config), {}, optax.identity(), validation_decay=decay)
    class_counts = real.dense().targets.sum(0)

    draw_plain = make_draw(config, real, pool, batch_key, range(program.plain_steps))
    draw = make_draw(config, real, pool, batch_key, folds=trains)
    size = program.saflex.validation_batch_size
    draw_validation = draw_ahead(real, held_out, size, batch_key, range(config.steps), (StepKey.VALIDATION, 0))

    def update(both: _State, step: int) -> tuple[_State, dict[str, Any]]:
        state, found = both
        step_key = jax.random.fold_in(batch_key, step)
        if step < program.plain_steps:
            state, metrics = _plain_step(classifier, program, state, (draw_plain(step), class_counts), step_key)
            return (state, found), metrics.told
        data = draw(step, found.labels), draw_validation(step), class_counts, prior
        both, metrics = _saflex_step(classifier, program, both, data, step_key)
        return both, metrics.told

    state, found = loop.run((state, found), config.steps, update)
    draws = np.maximum(to_host(found.draws), 1)
    is_drawn = to_host(found.draws) > 0
    return SaflexClassifier(
        state.params,
        np.where(is_drawn, to_host(found.weights) / draws, 1),
        np.where(is_drawn[:, None], to_host(found.soft_labels) / draws[:, None], to_host(labels)),
    )


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def _plain_step(
    classifier: Classifier,
    program: SaflexProgram,
    state: BilevelState,
    data: tuple[Examples, jax.Array],
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """The step without validation, which keeps weights and labels: that of `train_classifier`."""
    batch, class_counts = data
    return _make_update(classifier, program, class_counts, key)(state, batch.dense())


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def _saflex_step(
    classifier: Classifier,
    program: SaflexProgram,
    state: _State,
    data: tuple[Examples, Examples, jax.Array, jax.Array],
    key: jax.Array,
) -> tuple[_State, BilevelMetrics]:
    """A step with weights and labels by the influence on shifted validation images."""
    (classifier_state, found), (batch, validation, class_counts, prior) = state, data
    validation_key = jax.random.fold_in(key, StepKey.VALIDATION)
    shifted = random_shift(validation.inputs, jax.random.fold_in(validation_key, 1), program.config.max_shift)
    validation = smoothed(program.config, dataclasses.replace(validation, inputs=shifted))
    update = _make_update(classifier, program, class_counts, key)
    classifier_state, metrics = update(classifier_state, batch.dense(), validation)

    drawn = draw_synthetic(program.config, len(prior), key)
    is_kept, targets = metrics.weights[-len(drawn) :] > 0, metrics.targets[-len(drawn) :]
    # The geometric mean keeps that share of the log-odds, that is of the influence of all steps so far.
    memory = program.saflex.memory
    logits = memory * jnp.log(jnp.maximum(targets, _LEAST)) + (1 - memory) * jnp.log(prior[drawn])
    found = _PoolLabels(
        labels=found.labels.at[drawn].set(jax.nn.softmax(logits)),
        draws=found.draws.at[drawn].add(1),
        weights=found.weights.at[drawn].add(is_kept),
        soft_labels=found.soft_labels.at[drawn].add(targets),
    )
    return (classifier_state, found), metrics


def _make_update(
    classifier: Classifier, program: SaflexProgram, class_counts: jax.Array, key: jax.Array
) -> Callable[..., tuple[BilevelState, BilevelMetrics]]:
    """The bilevel update whose inner step is that of `train_classifier`: smoothing and mixing follow the weighting."""
    config = program.config

    def mixed_and_smoothed(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixing_key = jax.random.fold_in(key, StepKey.MIXING)
        images, targets = MIXINGS[config.mixing](images, targets, mixing_key, config.mixing_alpha)
        uniform = jnp.sum(targets, -1, keepdims=True) / targets.shape[-1]
        return images, optax.incremental_update(uniform, targets, config.label_smoothing)

    return make_bilevel_update(
        partial(training_logits, classifier, config, class_counts),
        saflex(label_probability=1.0, temperature=program.saflex.temperature),
        make_optimizer(config),
        optax.identity(),
        transform=mixed_and_smoothed,
    )
