"""Values a synthetic pool: UtilGen's task-oriented data valuation (arXiv 2510.24262).

The shots are divided into folds. For each fold a classifier learns from the other shots and the weighted pool, while
the weighting, one for all folds, learns through one step of lookahead which weights lower the loss on the fold's
images. Validation on images that are trained on would teach nothing, since their gradient vanishes as they are fitted.

Each classifier is trained to its end by plain steps on few synthetic images, and the bilevel steps after them are
small. Before that, or by a step that is not local, whatever has a high loss seems useful: it has the largest gradient,
and it regularises (measured: README.md in this folder).
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
from flax import struct

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.bilevel.folds import FoldStates
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import Weighting, WeightingInputs, feature_network, loss_network
from utilgen_jax.classifier.batches import draw_ahead, loaded, make_draw
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import StepKey, random_shift
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, train_classifiers
from utilgen_jax.classifier.train import predict_logits, training_logits
from utilgen_jax.data.splits import Fold, cross_fit_folds, evenly_spaced
from utilgen_jax.runtime.sharding import init_sharded, to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params
from utilgen_jax.valuation.config import ValuationConfig

PREDICTION_BATCH_SIZE = 500
# Right weights may agree a little less than not at all, where the held-out shots are few.
_LEAST_AGREEMENT = -0.05
# Weights that rise with the loss are what classifiers that still learn make of any pool, so they need evidence.
_CLEAR_AGREEMENT = 0.2

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
        fold_models: parameters of the folds' classifiers, "classifier", stacked [F, ...], and of the "weighting";
            `predict_weights` values other images with them. None without a weighting.
        agreement: of the weights with what the images do for the folds' classifiers, see `agreement`; None without a
            weighting.
        rise: of the weights with the losses, the mean correlation of a fold; None without a weighting.
    """

    weights: np.ndarray
    losses: np.ndarray | None = None
    soft_labels: np.ndarray | None = None
    difficulty: np.ndarray | None = None
    fold_models: dict[str, Params] | None = None
    agreement: float | None = None
    rise: float | None = None

    @property
    def contradictory(self) -> bool:
        """Whether nothing was learnt: weights contradict what images do, or rise with the loss without evidence."""
        if self.agreement is None:
            return False
        rises = self.rise is not None and self.rise > 0
        return self.agreement < (_CLEAR_AGREEMENT if rises else _LEAST_AGREEMENT)

    def training_weights(self, labels: np.ndarray, within_classes: bool) -> np.ndarray:
        """The weights as training takes them: of mean 1, so that a pool counts the same in every method.

        Args:
            labels: of the images, int [N].
            within_classes: whether that holds in each class. Where a loss balances classes, weights would tip it:
                they say which images of a class count, not how much the class does.
        """
        if not within_classes:
            return self.weights / self.weights.mean()
        means = np.bincount(labels, self.weights) / np.maximum(np.bincount(labels), 1)
        return (self.weights / np.where(means > 0, means, 1.0)[labels]).astype(np.float32)


def weighting_folds(valuation: ValuationConfig, labels: np.ndarray, seed: int) -> list[Fold]:
    """The folds of the shots over which a weighting is cross-fitted: of few shots as many as there are.

    Args:
        valuation: has their number.
        labels: of the shots, int [N].
        seed: of the folds.
    """
    return cross_fit_folds(labels, min(valuation.weighting_folds, len(labels)), seed)


def cross_fit(
    classifier: Classifier,
    config: ClassifierConfig,
    valuation: ValuationConfig,
    weighting_name: str,
    real: Examples,
    pool: Examples,
    folds: Sequence[Fold],
    key: jax.Array,
    loop: TrainingLoop,
) -> PoolValues:
    """Learns a weighting over the folds and gives every image of the pool its mean weight.

    Args:
        classifier: trained on the weighted images, from its own start in every fold.
        config: the final classifier's, see `ValuationConfig.training_of_a_fold`.
        valuation: the weighting's.
        weighting_name: key of `WEIGHTINGS`.
        real: the shots.
        pool: the synthetic images; their weights are not read.
        folds: of the shots, see `splits.cross_fit_folds`.
        key: PRNG key.
        loop: runs the steps; it tells of steps done in all folds, and of bilevel ones
            `first_nonfinite` and the validation loss too.

    Returns:
        The values of the pool's images, without difficulty. Weights that contradict what the images do at the end have
        found nothing: then all are 1.
    """
    program = _Program(
        valuation.training_of_a_fold(config),
        valuation,
        make_weighting(weighting_name, valuation, pool.num_classes, _num_attributes(pool)),
    )
    pool = dataclasses.replace(pool, weights=jnp.ones(len(pool)))
    trains = [real.take(fold.train_indices) for fold in folds]
    trainings = [
        Training(train, pool, jax.random.fold_in(jax.random.fold_in(key, 0), number))
        for number, train in enumerate(trains)
    ]
    outer = {"weighting": init_sharded(program.weighting.init, jax.random.fold_in(key, 1))}
    start = FoldStates.start(
        [
            init_state(params, program.optimizer, outer, program.outer_optimizer)
            for params in train_classifiers(classifier, program.config, trainings, loop.part("plain"))
        ]
    )

    # Classes are as frequent in the held-out shots as in the others, but not in the pool.
    class_counts = [count_classes(train) for train in trains]
    step_key, steps = jax.random.fold_in(key, 2), range(len(folds) * valuation.steps)

    of_pool = dataclasses.replace(program.config, synthetic_fraction=1.0, augmentation="none")
    draw = make_draw(of_pool, real, pool, step_key, steps)
    held_out = [fold.validation_indices for fold in folds]
    size = valuation.validation_batch_size
    draw_validation = draw_ahead(real, held_out, size, step_key, steps, (StepKey.VALIDATION,))

    def update(states: FoldStates, step: int) -> tuple[FoldStates, dict[str, Any]]:
        number = step % len(folds)
        data = class_counts[number], draw(step), draw_validation(step)
        own_key = jax.random.fold_in(step_key, step)
        state, metrics = _step(classifier, program, states.take(number), data, own_key)
        return states.put(number, state), metrics.told

    bilevel_loop = loop.part("bilevel", len(folds) * program.config.steps)
    trained = bilevel_loop.run(start, len(steps), update)
    weighting = trained.outer["weighting"]
    values = [_value(classifier, program, state.params, weighting, pool) for state in trained.folds]
    first = smoothed(program.config, loaded(pool.take(np.arange(min(len(pool), PREDICTION_BATCH_SIZE)))))
    validations = [real.take(rows[evenly_spaced(len(rows), PREDICTION_BATCH_SIZE)]) for rows in held_out]
    utilities = [
        _utilities(classifier, program, (counts, state.params), first, smoothed(program.config, loaded(validation)))
        for counts, state, validation in zip(class_counts, trained.folds, validations, strict=True)
    ]
    classifiers = [jax.tree.map(to_host, state.params) for state in trained.folds]
    fold_weights, fold_losses = (np.stack(parts) for parts in zip(*values, strict=True))
    agrees = agreement(fold_weights[:, : len(first)], np.stack([to_host(of_fold) for of_fold in utilities]))
    weights = fold_weights.mean(0)
    found = PoolValues(
        weights,
        fold_losses.mean(0),
        fold_models={
            "classifier": jax.tree.map(lambda *leaves: np.stack(leaves), *classifiers),
            "weighting": jax.tree.map(to_host, weighting),
        },
        agreement=agrees,
        rise=_mean_correlation(fold_weights, fold_losses),
    )
    return dataclasses.replace(found, weights=np.ones_like(weights)) if found.contradictory else found


def agreement(weights: np.ndarray, utilities: np.ndarray) -> float:
    """How far weights follow what images do for the folds' classifiers.

    Args:
        weights: by each fold's classifier, float [F, N].
        utilities: how much a small step on an image lowers the loss on the fold's shots, float [F, N].

    Returns:
        The mean correlation of a fold, in [-1, 1]; weights that are all the same correlate with nothing.
    """
    return _mean_correlation(weights, utilities)


def _mean_correlation(*values: np.ndarray) -> float:
    centred = [each - each.mean(1, keepdims=True) for each in values]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in centred]
    return float(np.mean(np.sum(unit[0] * unit[1], axis=1)))


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

    def weigh(params: Params) -> jax.Array:
        logits = classifier.apply(params, examples.inputs).astype(jnp.float32)
        return weighting.apply(fold_models["weighting"], WeightingInputs(examples, logits))[0]

    return jnp.mean(jax.vmap(weigh)(fold_models["classifier"]), axis=0)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a compiled bilevel step depends on."""

    config: ClassifierConfig
    valuation: ValuationConfig
    weighting: Weighting

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return local_optimizer(self.valuation.inner_learning_rate, self.config.weight_decay)

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
    data: tuple[jax.Array, Examples, Examples],
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One bilevel update on a batch of the pool: the classifier knows the shots, and what is asked is which help."""
    class_counts, batch, validation = data
    shifted = random_shift(validation.inputs, jax.random.fold_in(key, StepKey.SHIFT), program.config.max_shift)
    validation = dataclasses.replace(validation, inputs=shifted)
    balanced = partial(training_logits, classifier, program.config, class_counts)
    applies = classifier.apply, balanced
    update = make_bilevel_update(applies, program.weighting, program.optimizer, program.outer_optimizer)
    return update(state, smoothed(program.config, batch), smoothed(program.config, validation))


def _value(
    classifier: Classifier, program: _Program, params: Params, weighting: Params, pool: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [N] and losses [N] of the pool's images, by the classifier of a fold."""
    logits = predict_logits(classifier, params, pool.inputs, PREDICTION_BATCH_SIZE)
    examples = dataclasses.replace(smoothed(program.config, pool), inputs=None)
    inputs = WeightingInputs(examples, jnp.asarray(logits))
    weights, _ = program.weighting.apply(weighting, inputs)
    return to_host(weights), to_host(inputs.losses)


@partial(jax.jit, static_argnames="program")
def _utilities(
    classifier: Classifier,
    program: _Program,
    trained: tuple[jax.Array, Params],
    pool: Examples,
    held_out: Examples,
) -> jax.Array:
    """How much a small step of descent on each image lowers the loss on held-out shots, float32 [N].

    Args:
        classifier, program: as in training.
        trained: the numbers of its shots of each class, and parameters.
        pool, held_out: smoothed.
    """
    descent, (class_counts, params) = optax.sgd(1e-4), trained
    balanced = partial(training_logits, classifier, program.config, class_counts)
    start = params, descent.init(params)
    found = influence(classifier.apply, descent, *start, pool, held_out, validation_apply=balanced)
    return jnp.sum(pool.targets * found.matrix, axis=-1)


def local_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW at a constant rate, small enough that the lookahead is a local step; `eps_root` keeps it differentiable."""
    return optax.adamw(learning_rate, eps_root=1e-8, weight_decay=weight_decay)


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    outer: dict[str, Params],
    outer_optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    validation_decay: float = 0.0,
) -> BilevelState:
    """The state before the first bilevel step, laid out over the devices; arguments as in `init_bilevel`."""

    def init(params: Params, outer: dict[str, Params]) -> BilevelState:
        # Steps take over the memory of their state, and several states may start from one `outer`.
        own = jax.tree.map(jnp.copy, outer)
        return init_bilevel(params, optimizer, own, outer_optimizer, ema_decay, validation_decay)

    return init_sharded(init, params, outer)


def smoothed(config: ClassifierConfig, examples: Examples) -> Examples:
    """Examples as the bilevel update trains on them: with smoothed targets, and weights left to the weighting."""
    targets = optax.smooth_labels(examples.dense().targets, config.label_smoothing)
    return dataclasses.replace(examples, targets=targets, weights=None)
