"""Values a synthetic pool: UtilGen's task-oriented data valuation (arXiv 2510.24262).

The shots are divided into folds. For each fold a classifier learns from the other shots and the weighted pool, while
the weighting learns, through one step of lookahead, which weights lower the loss on the fold's images. Validation on
images that are trained on would teach nothing, since their gradient vanishes as they are fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, feature_network, loss_network
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import StepKey, draw_batch
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import init_classifier, make_optimizer, predict_logits
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import init_sharded, to_host
from utilgen_jax.types import Params
from utilgen_jax.valuation.config import ValuationConfig

PREDICTION_BATCH_SIZE = 500

# Inputs of `joint`'s weight network; the prompts' attributes come after them where there are any.
JOINT_FEATURES = ("loss", "margin", "entropy", "class")


def _feature_network(config: ValuationConfig, num_classes: int, num_attributes: int) -> Weighting:
    features = JOINT_FEATURES + (("attributes",) if num_attributes else ())
    return feature_network(features, num_classes, config.hidden, num_attributes)


# name -> (config, K, A) -> weighting
WEIGHTINGS: Mapping[str, Callable[[ValuationConfig, int, int], Weighting]] = {
    "loss_network": lambda config, num_classes, num_attributes: loss_network(config.hidden),
    "feature_network": _feature_network,
}


@cache
def make_weighting(name: str, config: ValuationConfig, num_classes: int, num_attributes: int = 0) -> Weighting:
    """Makes the weighting of a key of `WEIGHTINGS`; the same object each time, as `jax.jit` knows it by identity."""
    return WEIGHTINGS[name](config, num_classes, num_attributes)


@struct.dataclass
class PoolValues:
    """The value of each of N synthetic images.

    Attributes:
        weights: float32 [N] in [0, 1], the mean over the folds.
        losses: float32 [N], the mean over the folds: the weight network's input; None without a weighting.
        soft_labels: float32 [N, K]; None where the labels stay as they are.
        difficulty: float32 [N] in [0, 1], 1 - p(label) of a classifier of the shots alone; None where not measured.
        fold_models: each fold's classifier and weighting parameters, "classifier" and "weighting", stacked [F, ...];
            `predict_weights` values other images with them. None without a weighting.
    """

    weights: np.ndarray
    losses: np.ndarray | None = None
    soft_labels: np.ndarray | None = None
    difficulty: np.ndarray | None = None
    fold_models: dict[str, Params] | None = None


def cross_fit(
    classifier: Classifier,
    config: ClassifierConfig,
    valuation: ValuationConfig,
    weighting_name: str,
    real: Examples,
    pool: Examples,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: Callable[[int, BilevelMetrics], None],
) -> PoolValues:
    """Learns a weighting for each fold and gives every image of the pool its mean weight.

    Args:
        classifier: trained on the weighted images, from its own start in every fold.
        config: the classifier's, as for the final one; its `steps` are replaced by the valuation's.
        valuation: the weighting's.
        weighting_name: key of `WEIGHTINGS`.
        real: the shots.
        pool: the synthetic images; their weights are not read.
        folds: of the shots, see `splits.cross_fit_folds`.
        key: PRNG key.
        on_step: called after each step with (steps done in all folds, metrics on the device).

    Returns:
        The values of the pool's images, without difficulty.
    """
    program = _Program(
        dataclasses.replace(config, steps=valuation.steps),
        valuation,
        make_weighting(weighting_name, valuation, pool.num_classes, _num_attributes(pool)),
    )
    values, fold_models = [], []
    for number, fold in enumerate(folds):
        fold_key = jax.random.fold_in(key, number)
        outer = {"weighting": init_sharded(program.weighting.init, jax.random.fold_in(fold_key, 1))}
        init_key = jax.random.fold_in(fold_key, 0)
        image_shape = real.inputs.shape[1:]
        state = init_state(classifier, program.config, outer, program.outer_optimizer, image_shape, init_key)
        train, validation = real.take(fold.train_indices), real.take(fold.validation_indices)
        batch_key = jax.random.fold_in(fold_key, 2)
        for step in range(valuation.steps):
            step_key = jax.random.fold_in(batch_key, step)
            state, metrics = _step(classifier, program, state, (train, pool, validation), step_key)
            on_step(number * valuation.steps + step + 1, metrics)
        values.append(_value(classifier, program, state, pool))
        fold_models.append(jax.tree.map(to_host, {"classifier": state.params, "weighting": state.outer["weighting"]}))
    weights, losses = (np.mean(parts, axis=0) for parts in zip(*values, strict=True))
    return PoolValues(
        weights,
        losses,
        fold_models=jax.tree.map(lambda *leaves: np.stack(leaves), *fold_models),
    )


def predict_weights(
    classifier: Classifier,
    weighting_name: str,
    valuation: ValuationConfig,
    fold_models: dict[str, Params],
    examples: Examples,
) -> jax.Array:
    """The weights that the fold models of a pool give to other images, the mean over the folds; differentiable.

    Args:
        classifier: as in `cross_fit`.
        weighting_name: of a weighting that learns.
        valuation: as in `cross_fit`.
        fold_models: of the `PoolValues`.
        examples: images as the classifier is trained on them, with smoothed labels.

    Returns:
        Float32 [M].
    """
    weighting = make_weighting(weighting_name, valuation, examples.targets.shape[-1])

    def weigh(fold_model: dict[str, Params]) -> jax.Array:
        logits = classifier.apply(fold_model["classifier"], examples.inputs).astype(jnp.float32)
        return weighting.apply(fold_model["weighting"], WeightingInputs(examples, logits))[0]

    return jnp.mean(jax.vmap(weigh)(fold_models), axis=0)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a compiled bilevel step depends on."""

    config: ClassifierConfig
    valuation: ValuationConfig
    weighting: Weighting

    @property
    def outer_optimizer(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.valuation.weight_decay), optax.adam(self.valuation.learning_rate)
        )


def _num_attributes(pool: Examples) -> int:
    return 0 if pool.attributes is None else pool.attributes.shape[-1]


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def _step(
    classifier: Classifier,
    program: _Program,
    state: BilevelState,
    data: tuple[Examples, Examples, Examples],
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One bilevel update on a fresh batch of real and synthetic images; the real ones keep weight 1."""
    real, pool, validation = data
    size = program.valuation.validation_batch_size
    if size:
        chosen = jax.random.choice(jax.random.fold_in(key, StepKey.VALIDATION), len(validation), (size,))
        validation = validation.take(chosen)
    update = make_bilevel_update(
        classifier.apply, program.weighting, make_optimizer(program.config), program.outer_optimizer
    )
    batch = smoothed(program.config, draw_batch(program.config, real, pool, key))
    return update(state, batch, smoothed(program.config, validation))


def _value(
    classifier: Classifier, program: _Program, state: BilevelState, pool: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [N] and losses [N] of the pool's images, by the classifier and weighting of a fold."""
    logits = predict_logits(classifier, state.params, pool.inputs, PREDICTION_BATCH_SIZE)
    inputs = WeightingInputs(smoothed(program.config, pool), jnp.asarray(logits))
    weights, _ = program.weighting.apply(state.outer["weighting"], inputs)
    return to_host(weights), to_host(inputs.losses)


def init_state(
    classifier: Classifier,
    config: ClassifierConfig,
    outer: dict[str, Params],
    outer_optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    key: jax.Array,
) -> BilevelState:
    """The state before the first bilevel step of a classifier with random initial weights.

    Args:
        classifier: trained on the inner level.
        config: of its optimiser.
        outer: trained on the outer level.
        outer_optimizer: of `outer`.
        image_shape: of the classifier's input, (H, W, C).
        key: PRNG key of the classifier's weights.
    """
    params = init_classifier(classifier, image_shape, key)
    optimizer = make_optimizer(config)
    return init_sharded(lambda first, second: init_bilevel(first, optimizer, second, outer_optimizer), params, outer)


def smoothed(config: ClassifierConfig, examples: Examples) -> Examples:
    """Examples as the bilevel update trains on them: with smoothed targets, and weights left to the weighting."""
    targets = optax.smooth_labels(examples.dense().targets, config.label_smoothing)
    return dataclasses.replace(examples, targets=targets, weights=None)
