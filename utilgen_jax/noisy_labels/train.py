"""Trains a classifier on noisy labels, with or without learnt sample weights: Meta-Weight-Net's experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from utilgen_jax import bilevel
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, feature_network, loss_network, saflex, uniform
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import init_classifier, predict_logits
from utilgen_jax.data.augment.augmentation import AUGMENTATIONS
from utilgen_jax.data.images import to_float
from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.noisy_labels.draws import Draws, epoch_batch, pack, unpack
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params

# Number of training images that are evaluated at the end.
NUM_EVALUATED = 2000


@dataclasses.dataclass(frozen=True)
class NoisyData:
    """Images with noisy training labels.

    Attributes:
        train: training images with noisy labels.
        is_wrong: whether a training label is wrong, bool [N]; for evaluation only.
        validation: validation images with right labels, disjoint from the training images.
        test: test images; read once per weighting, after training.
    """

    train: LabelledImages
    is_wrong: np.ndarray
    validation: LabelledImages
    test: LabelledImages

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train.class_names)


@dataclasses.dataclass(frozen=True)
class NoisyTrainingConfig:
    """Training config shared by all weightings.

    Attributes:
        steps: number of optimiser steps.
        plain_steps: number of first steps with equal weights, in which no weighting is learnt. Early in training,
            high weights on high losses reduce the validation loss; a weight network that learns this saturates.
        batch_size: images per step.
        validation_batch_size: validation images per outer step.
        outer_every: steps between two outer steps. Ignored by SAFLEX, which computes the influence in every step.
        learning_rate: peak learning rate of SGD with Nesterov momentum 0.9, after a warm-up of 5 % of the steps and
            before a cosine decay to zero.
        weight_decay: L2 term added to the gradient.
        outer_learning_rate: learning rate of Adam for the weight network.
        label_probability: see `weightings.saflex`.
        temperature: see `weightings.saflex`.
        augment: augmentation of training images, a key of `AUGMENTATIONS`.
        seed: random seed of initial weights, batches and augmentation.
    """

    steps: int
    plain_steps: int
    batch_size: int
    validation_batch_size: int
    outer_every: int
    learning_rate: float
    weight_decay: float
    outer_learning_rate: float
    label_probability: float
    temperature: float
    augment: str
    seed: int

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimiser of the classifier."""
        schedule = warmup_cosine(self.learning_rate, self.steps)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.sgd(schedule, momentum=0.9, nesterov=True)
        )

    def outer_optimizer(self) -> optax.GradientTransformation:
        """Returns the optimiser of the weight network, with Meta-Weight-Net's weight decay."""
        return optax.chain(optax.add_decayed_weights(1e-4), optax.adam(self.outer_learning_rate))


# name -> (config, number of classes) -> weighting
WEIGHTINGS: Mapping[str, Callable[[NoisyTrainingConfig, int], Weighting]] = {
    "uniform": lambda config, num_classes: uniform(),
    "loss_network": lambda config, num_classes: loss_network(),
    "feature_network": lambda config, num_classes: feature_network(("loss", "margin", "entropy", "class"), num_classes),
    "saflex": lambda config, num_classes: saflex(config.label_probability, config.temperature),
}


_State = tuple[bilevel.BilevelState, Draws]


def train_and_evaluate(
    module: Any, name: str, config: NoisyTrainingConfig, data: NoisyData, loop: TrainingLoop
) -> dict[str, np.ndarray]:
    """Trains with one weighting from the seed's initial weights, tests, and evaluates training images.

    All weightings use the same labelled images: `uniform`, which needs no validation images, also trains on them, with
    their right labels.

    Args:
        module: linen classifier without batch statistics.
        name: key of `WEIGHTINGS`.
        config: training config.
        data: images.
        loop: runs the steps; it tells of `first_nonfinite` and the latest validation loss too.

    Returns:
        "correct", bool [T], for the test images. For the evaluated training images, [M] each: "is_wrong", bool; and
        "weight", "label_mass" (the soft label's probability of the given label) and "loss", float32.
    """
    classifier, weighting = Classifier(module), WEIGHTINGS[name](config, data.num_classes)
    key = jax.random.key(config.seed)
    optimizer, outer_optimizer = config.optimizer(), config.outer_optimizer()
    params = init_classifier(classifier, data.train.images.shape[1:], jax.random.fold_in(key, 0))
    outer = {"weighting": weighting.init(jax.random.fold_in(key, 1))}
    state = bilevel.init_bilevel(params, optimizer, outer, outer_optimizer)
    plain_update, weighted_update = (
        jax.jit(bilevel.make_bilevel_update(classifier.apply, each, optimizer, outer_optimizer), donate_argnums=0)
        for each in (uniform(), weighting)
    )

    is_uniform = not weighting.needs_influence and not outer["weighting"]
    outer_every = 1 if weighting.needs_influence else config.outer_every
    train = _joined(data.train, data.validation) if is_uniform else data.train
    latest: dict[str, Any] = {}

    def update(both: _State, step: int) -> tuple[_State, dict[str, Any]]:
        state, draws = both
        rng, validation_rng = unpack(draws.training), unpack(draws.validation)
        order, indices = epoch_batch(draws.order, step, config.batch_size, rng)
        images = AUGMENTATIONS[config.augment](train.images[indices], rng)
        examples = _examples(images, train.labels[indices], data.num_classes)
        if is_uniform or step < config.plain_steps:
            state, metrics = plain_update(state, examples)
        elif (step - config.plain_steps) % outer_every:
            state, metrics = weighted_update(state, examples)
        else:
            validation = _draw(data.validation, config.validation_batch_size, data.num_classes, validation_rng)
            state, metrics = weighted_update(state, examples, validation)
            latest.update(validation_loss=metrics.validation_loss)
        return (state, Draws(order, pack(rng), pack(validation_rng))), {**metrics.told, **latest}

    state, draws = loop.run((state, Draws.first(len(train), config.seed)), config.steps, update)
    logits = predict_logits(classifier, state.params, data.test.images, config.batch_size)
    evaluated = evaluate_samples(classifier.apply, weighting, state, data, config, unpack(draws.validation))
    return {"correct": logits.argmax(-1) == data.test.labels, **evaluated}


def evaluate_samples(
    apply: Callable[[Params, Any], jax.Array],
    weighting: Weighting,
    state: bilevel.BilevelState,
    data: NoisyData,
    config: NoisyTrainingConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Returns weight, label mass and loss of the first `NUM_EVALUATED` training images under the trained classifier.

    The images are not augmented. The influence is that of a short step of gradient descent, as the training's own
    learning rate has decayed to zero.
    """
    descent = optax.sgd(1e-3)

    @jax.jit
    def evaluate_batch(state: bilevel.BilevelState, examples: Examples, validation: Examples) -> dict[str, jax.Array]:
        matrix = None
        if weighting.needs_influence:
            matrix = influence(apply, descent, state.params, descent.init(state.params), examples, validation).matrix
        weighting_inputs = WeightingInputs(examples, apply(state.params, examples.inputs), matrix)
        weights, targets = weighting.apply(state.outer["weighting"], weighting_inputs)
        return {"weight": weights, "label_mass": (targets * examples.targets).sum(-1), "loss": weighting_inputs.losses}

    size = config.batch_size
    number = min(NUM_EVALUATED, len(data.train)) // size * size
    parts = []
    for start in range(0, number, size):
        images, labels = (array[start : start + size] for array in (data.train.images, data.train.labels))
        validation = _draw(data.validation, config.validation_batch_size, data.num_classes, rng)
        parts.append(jax.device_get(evaluate_batch(state, _examples(images, labels, data.num_classes), validation)))
    outputs = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return outputs | {"is_wrong": data.is_wrong[:number]}


def _joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    return LabelledImages(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
        first.ids + second.ids,
        first.class_names,
    )


def _examples(images: np.ndarray, labels: np.ndarray, num_classes: int) -> Examples:
    return Examples(to_float(images), np.eye(num_classes, dtype=np.float32)[labels])


def _draw(images: LabelledImages, number: int, num_classes: int, rng: np.random.Generator) -> Examples:
    """Draws `number` images with replacement."""
    indices = rng.integers(len(images), size=number)
    return _examples(images.images[indices], images.labels[indices], num_classes)
