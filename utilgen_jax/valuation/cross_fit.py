"""Values a synthetic pool: UtilGen's task-oriented data valuation (arXiv 2510.24262), or SAFLEX (arXiv 2410.02512).

The shots are parted into folds. For each, a classifier learns from the rest of the shots and the weighted pool, while
the weighting learns, through one step of lookahead, which weights lower the loss on the fold's images.
Validation on the images that are trained on would teach nothing, since their gradient vanishes as they are fitted;
hence the cross-fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, feature_network, loss_network, saflex
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import ClassifierConfig, TrainingSet
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import init_sharded, to_host

Params = Any

PREDICTION_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class ValuationConfig:
    """How the weighting is learnt.

    Attributes:
        steps: bilevel steps a fold.
        hidden: hidden units of the weight network.
        learning_rate: of Adam, for the weight network.
        weight_decay: added to its gradient (L2), as in Meta-Weight-Net's public code.
        validation_batch_size: validation images a step; 0: the whole part.
        label_strength: of SAFLEX, see `weightings.saflex`.
        temperature: likewise.
    """

    steps: int
    hidden: int
    learning_rate: float
    weight_decay: float
    validation_batch_size: int
    label_strength: float
    temperature: float


# What the weight network of `joint` looks at; the attributes where there are any.
JOINT_FEATURES = ("loss", "margin", "entropy", "class")


def _joint_network(config: ValuationConfig, num_classes: int, num_attributes: int) -> Weighting:
    features = JOINT_FEATURES + (("attributes",) if num_attributes else ())
    return feature_network(features, num_classes, config.hidden, num_attributes)


# name, as `methods` has it -> (config, K, A) -> weighting
WEIGHTINGS: Mapping[str, Callable[[ValuationConfig, int, int], Weighting]] = {
    "weight_network": lambda config, num_classes, num_attributes: loss_network(config.hidden),
    "saflex": lambda config, num_classes, num_attributes: saflex(config.label_strength, config.temperature),
    "joint": _joint_network,
}


@cache
def make_weighting(name: str, config: ValuationConfig, num_classes: int, num_attributes: int = 0) -> Weighting:
    """The weighting of a key of `WEIGHTINGS`; the same object each time, as a compiled step knows it by identity."""
    return WEIGHTINGS[name](config, num_classes, num_attributes)


@dataclasses.dataclass(frozen=True)
class PoolValue:
    """What the pool is worth.

    Attributes:
        weights: float32 [N] in [0, 1], the mean over the folds.
        losses: float32 [N], likewise; what the weight network saw.
        soft_labels: float32 [N, K], likewise; None where the weighting leaves labels as they are.
        fold models: each fold's classifier and weighting parameters, "classifier" and "weighting", stacked: [F, ...].
            What they say of images that are not in the pool tells `predict_weights`.
    """

    weights: np.ndarray
    losses: np.ndarray
    soft_labels: np.ndarray | None
    fold_models: dict[str, Params]


def value_pool(
    classifier: Classifier,
    weighting_name: str,
    config: ClassifierConfig,
    valuation_config: ValuationConfig,
    num_classes: int,
    real: TrainingSet,
    pool: TrainingSet,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: Callable[[int, BilevelMetrics], None],
) -> PoolValue:
    """Learns a weighting for each fold and gives every image of the pool its mean weight, and soft label if any.

    Args:
        classifier: what is trained on the weighted images, from the same start in every fold.
        weighting_name: key of `WEIGHTINGS`.
        config: the classifier's, as for the final one; its `steps` are replaced by the weighting's.
        valuation_config: the weighting's.
        num_classes: K.
        real: the shots.
        pool: the synthetic images; its weights are not read, its attributes by weightings that look at them.
        folds: of the shots, see `splits.cross_fit_folds`.
        key: PRNG key.
        on_step: called after each step with (steps done in all folds, metrics on the device).

    Returns:
        Weights and losses of the pool's images, in its order.
    """
    config = dataclasses.replace(config, steps=valuation_config.steps)
    num_attributes = 0 if pool.attributes is None else pool.attributes.shape[-1]
    weighting = make_weighting(weighting_name, valuation_config, num_classes, num_attributes)
    values, fold_models = [], []
    for number, fold in enumerate(folds):
        fold_key = jax.random.fold_in(key, number)
        outer = {"weighting": init_sharded(weighting.init, jax.random.fold_in(fold_key, 1))}
        outer_optimizer, init_key = _weight_optimizer(valuation_config), jax.random.fold_in(fold_key, 0)
        state = init_state(classifier, config, outer, outer_optimizer, real.images.shape[1:], init_key)
        train, validation = real.take(fold.train_indices), real.take(fold.validation_indices)
        batch_key = jax.random.fold_in(fold_key, 2)
        for step in range(config.steps):
            step_key = jax.random.fold_in(batch_key, step)
            state, metrics = _value_step(
                classifier, weighting, config, valuation_config, state, train, pool, validation, step_key
            )
            on_step(number * config.steps + step + 1, metrics)
        values.append(_value(classifier, weighting, config, state, pool, validation))
        fold_models.append(jax.tree.map(to_host, {"classifier": state.params, "weighting": state.outer["weighting"]}))
    weights, losses, soft_labels = (np.mean(parts, axis=0) for parts in zip(*values, strict=True))
    return PoolValue(
        weights,
        losses,
        soft_labels if weighting.needs_influence else None,
        jax.tree.map(lambda *leaves: np.stack(leaves), *fold_models),
    )


def predict_weights(
    classifier: Classifier,
    weighting_name: str,
    valuation_config: ValuationConfig,
    fold_models: dict[str, Params],
    images: Examples,
) -> jax.Array:
    """What the fold models of a pool would weigh other images, the mean over the folds: float32 [M]; differentiable.

    Args:
        classifier: as in `value_pool`.
        weighting_name: of a weighting that learns, likewise.
        valuation_config: likewise.
        fold models: of the `PoolValue`.
        images: as the classifier is trained on them, with smoothed labels.
    """
    weighting = make_weighting(weighting_name, valuation_config, images.targets.shape[-1])

    def weigh(fold_model: dict[str, Params]) -> jax.Array:
        logits = classifier.apply(fold_model["classifier"], images.inputs).astype(jnp.float32)
        return weighting.apply(fold_model["weighting"], WeightingInputs(images, logits))[0]

    return jnp.mean(jax.vmap(weigh)(fold_models), axis=0)


def _value(
    classifier: Classifier,
    weighting: Weighting,
    config: ClassifierConfig,
    state: BilevelState,
    pool: TrainingSet,
    validation: TrainingSet,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [N], losses [N] and targets [N, K] of the pool's images, by the classifier and weighting of a fold."""
    logits = classification.predict_logits(classifier, state.params, pool.images, PREDICTION_BATCH_SIZE)
    # Soft labels are made of the labels as they are: the final classifier smooths them, and once is enough.
    own = dataclasses.replace(config, label_smoothing=0.0) if weighting.needs_influence else config
    examples = as_examples(own, pool, logits.shape[-1])
    weighting_inputs = WeightingInputs(examples, jnp.asarray(logits))
    if weighting.needs_influence:
        parts = []
        for start in range(0, len(logits), PREDICTION_BATCH_SIZE):
            # The last part is filled up from the beginning: all have one shape, and compile once.
            chosen = np.arange(start, start + min(PREDICTION_BATCH_SIZE, len(logits))) % len(logits)
            seen = _influence_matrix(classifier, config, state.params, pool.take(chosen), validation)
            parts.append(to_host(seen)[: len(logits) - start])
        weighting_inputs = dataclasses.replace(weighting_inputs, influence=jnp.concatenate(parts))
    weights, targets = weighting.apply(state.outer["weighting"], weighting_inputs)
    return to_host(weights), to_host(weighting_inputs.losses), to_host(targets)


@partial(jax.jit, static_argnames="config")
def _influence_matrix(
    classifier: Classifier, config: ClassifierConfig, params: Params, images: TrainingSet, validation: TrainingSet
) -> jax.Array:
    """Π of the images [B, K], along a short step of plain descent: the training's own rate is zero at its end."""
    num_classes = jax.eval_shape(classifier.apply, params, images.images).shape[-1]
    examples, held_out = (as_examples(config, part, num_classes) for part in (images, validation))
    descent = optax.sgd(1e-3)
    return influence(classifier.apply, descent, params, descent.init(params), examples, held_out).matrix


def _weight_optimizer(valuation_config: ValuationConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(valuation_config.weight_decay), optax.adam(valuation_config.learning_rate)
    )


def init_state(
    classifier: Classifier,
    config: ClassifierConfig,
    outer: dict[str, Params],
    outer_optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    key: jax.Array,
) -> BilevelState:
    """The state before the first bilevel step of a classifier with weights of its own.

    Args:
        classifier: trained on the inner level.
        config: says its optimiser.
        outer: what the outer level trains.
        outer_optimizer: of it.
        image_shape: of an image that the classifier sees, (H, W, C).
        key: PRNG key of the classifier's weights.
    """
    params = classification.init_classifier(classifier, image_shape, key)
    optimizer = classification.make_optimizer(config)
    return init_sharded(lambda first, second: init_bilevel(first, optimizer, second, outer_optimizer), params, outer)


def as_examples(config: ClassifierConfig, images: TrainingSet, num_classes: int) -> Examples:
    """Images as the bilevel update sees them, with smoothed targets [N, K]; their weights are not among it."""
    targets = optax.smooth_labels(images.targets(num_classes), config.label_smoothing)
    return Examples(images.images, targets, attributes=images.attributes)


def draw_examples(
    config: ClassifierConfig, real: TrainingSet, pool: TrainingSet, num_classes: int, key: jax.Array
) -> Examples:
    """A fresh batch of real and synthetic images, see `classification.draw_batch`; the real ones keep weight 1."""
    batch = classification.draw_batch(config, real, pool, key)
    is_synthetic = jnp.arange(config.batch_size) >= config.batch_size - config.num_synthetic
    return dataclasses.replace(as_examples(config, batch, num_classes), is_weighted=is_synthetic)


@partial(jax.jit, static_argnames=("weighting", "config", "valuation_config"), donate_argnames="state")
def _value_step(
    classifier: Classifier,
    weighting: Weighting,
    config: ClassifierConfig,
    valuation_config: ValuationConfig,
    state: BilevelState,
    real: TrainingSet,
    pool: TrainingSet,
    validation: TrainingSet,
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One bilevel update on a fresh batch of real and synthetic images; the real ones keep weight 1."""
    size = valuation_config.validation_batch_size
    if size:
        chosen = jax.random.choice(jax.random.fold_in(key, 3), validation.labels.shape[0], (size,))
        validation = validation.take(chosen)
    num_classes = jax.eval_shape(classifier.apply, state.params, pool.images).shape[-1]
    update = make_bilevel_update(
        classifier.apply, weighting, classification.make_optimizer(config), _weight_optimizer(valuation_config)
    )
    examples = draw_examples(config, real, pool, num_classes, key)
    return update(state, examples, as_examples(config, validation, num_classes))
