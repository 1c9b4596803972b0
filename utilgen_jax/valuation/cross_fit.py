"""Values a synthetic pool: UtilGen's task-oriented data valuation (arXiv 2510.24262).

The shots are divided into folds. For each fold a classifier learns from the other shots and the weighted pool, while
the weighting learns, through one step of lookahead, which weights lower the loss on the fold's images. Validation on
images that are trained on would teach nothing, since their gradient vanishes as they are fitted.

Each classifier starts with plain steps, and the bilevel ones after them are small. From a cold start, or by a step that
is not local, whatever has a high loss seems useful: it regularises (measured: README.md in this folder).
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
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.data.splits import Fold
from utilgen_jax.runtime.sharding import init_sharded, to_host
from utilgen_jax.types import OnStep, Params, counted_from
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
        agreement: the mean correlation of the weights of two folds, in [-1, 1], see `fold_agreement`; None without a
            weighting. Where it is negative the weights are all 1.
    """

    weights: np.ndarray
    losses: np.ndarray | None = None
    soft_labels: np.ndarray | None = None
    difficulty: np.ndarray | None = None
    fold_models: dict[str, Params] | None = None
    agreement: float | None = None

    @property
    def contradictory(self) -> bool:
        """Whether the folds' weights contradict each other, so that nothing was learnt."""
        return self.agreement is not None and self.agreement < 0


def cross_fit(
    classifier: Classifier,
    config: ClassifierConfig,
    valuation: ValuationConfig,
    weighting_name: str,
    real: Examples,
    pool: Examples,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: OnStep,
) -> PoolValues:
    """Learns a weighting for each fold and gives every image of the pool its mean weight.

    Args:
        classifier: trained on the weighted images, from its own start in every fold.
        config: the classifier's, as for the final one; its `steps` are replaced by the valuation's plain ones, which
            are followed by bilevel ones at the valuation's rate.
        valuation: the weighting's.
        weighting_name: key of `WEIGHTINGS`.
        real: the shots.
        pool: the synthetic images; their weights are not read.
        folds: of the shots, see `splits.cross_fit_folds`.
        key: PRNG key.
        on_step: called after each step with (steps done in all folds, loss on the device, `first_nonfinite` and
            validation loss of bilevel steps).

    Returns:
        The values of the pool's images, without difficulty. Folds whose weights contradict each other have found
        nothing: then all weights are 1.
    """
    program = _Program(
        dataclasses.replace(config, steps=valuation.plain_steps),
        valuation,
        make_weighting(weighting_name, valuation, pool.num_classes, _num_attributes(pool)),
    )
    pool = dataclasses.replace(pool, weights=jnp.ones(len(pool)))
    values, fold_models = [], []
    for number, fold in enumerate(folds):
        fold_key = jax.random.fold_in(key, number)
        done = number * valuation.total_steps
        train, validation = real.take(fold.train_indices), real.take(fold.validation_indices)
        params = train_classifier(
            classifier, program.config, train, pool, jax.random.fold_in(fold_key, 0), counted_from(done, on_step)
        )
        outer = {"weighting": init_sharded(program.weighting.init, jax.random.fold_in(fold_key, 1))}
        state = init_state(params, program.optimizer, outer, program.outer_optimizer)
        batch_key = jax.random.fold_in(fold_key, 2)
        done += valuation.plain_steps
        for step in range(valuation.steps):
            step_key = jax.random.fold_in(batch_key, step)
            state, metrics = _step(classifier, program, state, (train, pool, validation), step_key)
            on_step(done + step + 1, metrics.train_loss, metrics.first_nonfinite, **metrics.scalars)
        values.append(_value(classifier, program, state, pool))
        fold_models.append(jax.tree.map(to_host, {"classifier": state.params, "weighting": state.outer["weighting"]}))
    fold_weights, fold_losses = (np.stack(parts) for parts in zip(*values, strict=True))
    agreement = fold_agreement(fold_weights)
    weights = fold_weights.mean(0)
    return PoolValues(
        np.ones_like(weights) if agreement < 0 else weights,
        fold_losses.mean(0),
        fold_models=jax.tree.map(lambda *leaves: np.stack(leaves), *fold_models),
        agreement=agreement,
    )


def fold_agreement(fold_weights: np.ndarray) -> float:
    """How far the folds agree on a pool: the mean correlation of the weights [F, N] of two folds, in [-1, 1].

    Weights of a fold that are all the same correlate with nothing; a single fold agrees with itself.
    """
    centred = fold_weights - fold_weights.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    unit = centred / np.where(norms > 1e-12, norms, 1.0)[:, None]
    pairs = [float(np.dot(unit[one], unit[two])) for one in range(len(unit)) for two in range(one)]
    return float(np.mean(pairs)) if pairs else 1.0


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
    data: tuple[Examples, Examples, Examples],
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One bilevel update on a fresh batch of real and synthetic images; the real ones keep weight 1."""
    real, pool, validation = data
    size = program.valuation.validation_batch_size
    if size:
        chosen = jax.random.choice(jax.random.fold_in(key, StepKey.VALIDATION), len(validation), (size,))
        validation = validation.take(chosen)
    update = make_bilevel_update(classifier.apply, program.weighting, program.optimizer, program.outer_optimizer)
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


def local_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW at a constant rate, small enough that the lookahead is a local step; `eps_root` keeps it differentiable."""
    return optax.adamw(learning_rate, eps_root=1e-8, weight_decay=weight_decay)


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    outer: dict[str, Params],
    outer_optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
) -> BilevelState:
    """The state before the first bilevel step, laid out over the devices; arguments as in `init_bilevel`."""

    def init(params: Params, outer: dict[str, Params]) -> BilevelState:
        # Steps take over the memory of their state, and several states may start from one `outer`.
        return init_bilevel(params, optimizer, jax.tree.map(jnp.copy, outer), outer_optimizer, ema_decay)

    return init_sharded(init, params, outer)


def smoothed(config: ClassifierConfig, examples: Examples) -> Examples:
    """Examples as the bilevel update trains on them: with smoothed targets, and weights left to the weighting."""
    targets = optax.smooth_labels(examples.dense().targets, config.label_smoothing)
    return dataclasses.replace(examples, targets=targets, weights=None)
