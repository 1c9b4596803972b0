"""Trains a classifier on labels that are partly wrong, with learnt weights or without: Meta-Weight-Net's experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from utilgen_jax import bilevel
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, feature_network, loss_network, saflex, uniform
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.augment.augmentation import AUGMENTATIONS
from utilgen_jax.data.images import to_float
from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.runtime.schedules import warmup_cosine

Params = Any

# Training images that are valued at the end: enough for an AUC to two digits, few beside the training.
NUM_VALUED = 2000


@dataclasses.dataclass(frozen=True)
class NoisyData:
    """Images of which nobody is told whose labels are wrong.

    Attributes:
        train: with noisy labels.
        is_wrong: bool [N], of train; for the figures alone.
        validation: with right labels; no image of train.
        test: read once a weighting, at its end.
    """

    train: LabelledImages
    is_wrong: np.ndarray
    validation: LabelledImages
    test: LabelledImages

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.train.class_names)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How all classifiers of the experiment are trained.

    Attributes:
        steps: optimiser steps.
        plain_steps: the first ones, in which no weighting is used or learnt yet. While the classifier knows little,
            more weight on high losses helps; a weight network that learns so is saturated when the tide turns.
            (ResNet-20 on CIFAR-10 at 16×16 with 40 % noise, 3,000 steps: weights of AUC 0.11, the wrong way round,
            without plain steps.)
        batch_size: images a step.
        validation_batch_size: validation images in a step of the outer level.
        outer_every: steps between two of the outer level. (SAFLEX has none: its influence is computed in every step.)
        learning_rate: peak of SGD with Nesterov momentum 0.9, after a warm-up of 5 % of the steps; cosine decay to
            zero.
        weight_decay: added to the gradient (L2).
        outer_learning_rate: of Adam, for the weight network.
        label_strength: of SAFLEX, see `weightings.saflex`.
        temperature: likewise.
        augment: key of `AUGMENTATIONS`, for training images.
        seed: of initial weights, batches and augmentation.
    """

    steps: int
    plain_steps: int
    batch_size: int
    validation_batch_size: int
    outer_every: int
    learning_rate: float
    weight_decay: float
    outer_learning_rate: float
    label_strength: float
    temperature: float
    augment: str
    seed: int

    def optimizer(self) -> optax.GradientTransformation:
        """The classifier's."""
        schedule = warmup_cosine(self.learning_rate, self.steps)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.sgd(schedule, momentum=0.9, nesterov=True)
        )

    def outer_optimizer(self) -> optax.GradientTransformation:
        """The weight network's, with Meta-Weight-Net's weight decay."""
        return optax.chain(optax.add_decayed_weights(1e-4), optax.adam(self.outer_learning_rate))


# name -> (config, number of classes) -> weighting
WEIGHTINGS: Mapping[str, Callable[[ClassifierConfig, int], Weighting]] = {
    "uniform": lambda config, num_classes: uniform(),
    "loss_network": lambda config, num_classes: loss_network(),
    "feature_network": lambda config, num_classes: feature_network(("loss", "margin", "entropy", "class"), num_classes),
    "saflex": lambda config, num_classes: saflex(config.label_strength, config.temperature),
}


def train_and_value(
    module: Any, name: str, config: ClassifierConfig, data: NoisyData, on_step: Callable[..., None]
) -> dict[str, np.ndarray]:
    """Trains with one weighting from the seed's initial weights, tests, and values training images.

    All weightings see the same labelled images: `uniform`, which has no other use for the validation images, trains
    on them too, with their right labels.

    Args:
        module: a linen classifier without batch statistics.
        name: key of `WEIGHTINGS`.
        config: how.
        data: on what.
        on_step: called after each step with (steps done, loss on the device, `BilevelMetrics.first_nonfinite`), and by
            name with the latest validation loss.

    Returns:
        "correct" bool [T], of the test images; and of the training images that are valued, [M] each: "is_wrong" bool,
        "weight", "label_mass" (what the soft label gives to the label as it came) and "loss", float32.
    """
    classifier, weighting = Classifier(module), WEIGHTINGS[name](config, data.num_classes)
    key = jax.random.key(config.seed)
    optimizer, outer_optimizer = config.optimizer(), config.outer_optimizer()
    params = classification.init_classifier(classifier, data.train.images.shape[1:], jax.random.fold_in(key, 0))
    outer = {"weighting": weighting.init(jax.random.fold_in(key, 1))}
    state = bilevel.init_bilevel(params, optimizer, outer, outer_optimizer)
    plain_update, weighted_update = (
        jax.jit(bilevel.make_bilevel_update(classifier.apply, chosen, optimizer, outer_optimizer), donate_argnums=0)
        for chosen in (uniform(), weighting)
    )

    is_uniform = not weighting.needs_influence and not outer["weighting"]
    outer_every = 1 if weighting.needs_influence else config.outer_every
    train = _joined(data.train, data.validation) if is_uniform else data.train
    rng = np.random.default_rng((config.seed, 0))
    batches = _index_batches(len(train), config.batch_size, rng)
    validation_rng = np.random.default_rng((config.seed, 1))
    scalars: dict[str, Any] = {}
    for step in range(config.steps):
        indices = next(batches)
        images = AUGMENTATIONS[config.augment](train.images[indices], rng)
        examples = _examples(images, train.labels[indices], data.num_classes)
        if is_uniform or step < config.plain_steps:
            state, metrics = plain_update(state, examples)
        elif (step - config.plain_steps) % outer_every:
            state, metrics = weighted_update(state, examples)
        else:
            validation = _draw(data.validation, config.validation_batch_size, data.num_classes, validation_rng)
            state, metrics = weighted_update(state, examples, validation)
            scalars = {"validation_loss": metrics.validation_loss}
        on_step(step + 1, metrics.train_loss, metrics.first_nonfinite, **scalars)

    logits = classification.predict_logits(classifier, state.params, to_float(data.test.images), config.batch_size)
    valued = value(classifier.apply, weighting, state, data, config, validation_rng)
    return {"correct": logits.argmax(-1) == data.test.labels, **valued}


def value(
    apply: Callable[[Params, Any], jax.Array],
    weighting: Weighting,
    state: bilevel.BilevelState,
    data: NoisyData,
    config: ClassifierConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Weight, label mass and loss of the first `NUM_VALUED` training images, as they are, by the trained classifier.

    Influence is looked for along a short step of plain descent: by its last step the training's own rate is zero. (At a
    rate of 1 the step spoils the classifier that is asked: ResNet-20's utilities had an AUC of 0.43, at 0.001 of 0.55,
    and with 512 validation images in place of 64 of 0.73.)
    """
    descent = optax.sgd(1e-3)

    @jax.jit
    def look(state: bilevel.BilevelState, examples: Examples, validation: Examples) -> dict[str, jax.Array]:
        matrix = None
        if weighting.needs_influence:
            matrix = influence(apply, descent, state.params, descent.init(state.params), examples, validation).matrix
        weighting_inputs = WeightingInputs(examples, apply(state.params, examples.inputs), matrix)
        weights, targets = weighting.apply(state.outer["weighting"], weighting_inputs)
        return {"weight": weights, "label_mass": (targets * examples.targets).sum(-1), "loss": weighting_inputs.losses}

    size = config.batch_size
    number = min(NUM_VALUED, len(data.train)) // size * size
    parts = []
    for start in range(0, number, size):
        images, labels = (array[start : start + size] for array in (data.train.images, data.train.labels))
        validation = _draw(data.validation, config.validation_batch_size, data.num_classes, rng)
        parts.append(jax.device_get(look(state, _examples(images, labels, data.num_classes), validation)))
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return found | {"is_wrong": data.is_wrong[:number]}


def _joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    return LabelledImages(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
        first.ids + second.ids,
        first.class_names,
    )


def _index_batches(size: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Epoch after epoch, each in a new order, without its incomplete last batch."""
    while True:
        order = rng.permutation(size)
        yield from order[: size // batch_size * batch_size].reshape(-1, batch_size)


def _examples(images: np.ndarray, labels: np.ndarray, num_classes: int) -> Examples:
    return Examples(to_float(images), np.eye(num_classes, dtype=np.float32)[labels])


def _draw(images: LabelledImages, number: int, num_classes: int, rng: np.random.Generator) -> Examples:
    """`number` images, with replacement: there may be fewer."""
    indices = rng.integers(len(images), size=number)
    return _examples(images.images[indices], images.labels[indices], num_classes)
