"""Values a synthetic pool with the weight network: UtilGen's task-oriented data valuation (arXiv 2510.24262).

The shots are parted into folds. For each, a classifier learns from the rest of the shots and the weighted pool, while
the weight network learns, through one step of lookahead, which weights lower the loss on the fold's pictures.
Validation on the pictures that are trained on would teach nothing, since their gradient vanishes as they are fitted;
hence the cross-fit.
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

from utilgen_jax import classification
from utilgen_jax.bilevel import BilevelMetrics, BilevelState, init_bilevel, make_bilevel_update
from utilgen_jax.classification import Recipe, TrainingSet
from utilgen_jax.data.splits import Fold
from utilgen_jax.parallel import init_sharded, to_host
from utilgen_jax.utility.examples import Examples
from utilgen_jax.utility.weightings import Signals, Weighting, loss_network

Params = Any

PREDICTION_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class WeightRecipe:
    """How the weight network is trained.

    Attributes:
      steps: bilevel steps a fold.
      hidden: its hidden units.
      learning_rate: of Adam.
      weight_decay: added to its gradient (L2), as in Meta-Weight-Net's public code.
      validation_batch_size: validation pictures a step; 0: the whole part.
    """

    steps: int
    hidden: int
    learning_rate: float
    weight_decay: float
    validation_batch_size: int


@dataclasses.dataclass(frozen=True)
class PoolValue:
    """What the pool is worth.

    Attributes:
      weights: float32 [N] in [0, 1], the mean over the folds.
      losses: float32 [N], likewise; what the weight network saw.
    """

    weights: np.ndarray
    losses: np.ndarray


def value_pool(
    module: Any,
    recipe: Recipe,
    weight_recipe: WeightRecipe,
    real: TrainingSet,
    pool: TrainingSet,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: Callable[[int, BilevelMetrics], None],
) -> PoolValue:
    """Trains a weight network for each fold and gives every picture of the pool its mean weight.

    Args:
      module: the classifier.
      recipe: the classifier's, as for the final one; its `steps` are replaced by the weight network's.
      weight_recipe: the weight network's.
      real: the shots.
      pool: the synthetic pictures; its weights are not read.
      folds: of the shots, see `splits.cross_fit_folds`.
      key: PRNG key.
      on_step: called after each step with (steps done in all folds, metrics on the device).

    Returns:
      Weights and losses of the pool's pictures, in its order.
    """
    recipe = dataclasses.replace(recipe, steps=weight_recipe.steps)
    weighting = loss_network(weight_recipe.hidden)
    losses, weights = [], []
    for number, fold in enumerate(folds):
        fold_key = jax.random.fold_in(key, number)
        state = _init_state(module, weighting, recipe, weight_recipe, real.images.shape[1:], fold_key)
        train, validation = real.take(fold.train_indices), real.take(fold.validation_indices)
        batch_key = jax.random.fold_in(fold_key, 2)
        for step in range(recipe.steps):
            step_key = jax.random.fold_in(batch_key, step)
            state, metrics = _value_step(
                module, weighting, recipe, weight_recipe, state, train, pool, validation, step_key
            )
            on_step(number * recipe.steps + step + 1, metrics)
        logits = classification.predict_logits(module, state.params, pool.images, PREDICTION_BATCH_SIZE)
        signals = Signals(_as_examples(recipe, pool, logits.shape[-1]), jnp.asarray(logits))
        losses.append(to_host(signals.losses))
        weights.append(to_host(weighting.apply(state.outer["weighting"], signals)[0]))
    return PoolValue(weights=np.mean(weights, axis=0), losses=np.mean(losses, axis=0))


def _weight_optimizer(weight_recipe: WeightRecipe) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_recipe.weight_decay), optax.adam(weight_recipe.learning_rate))


def _init_state(
    module: Any,
    weighting: Weighting,
    recipe: Recipe,
    weight_recipe: WeightRecipe,
    image_shape: tuple[int, ...],
    key: jax.Array,
) -> BilevelState:
    params = classification.init_classifier(module, image_shape, jax.random.fold_in(key, 0))
    outer = {"weighting": init_sharded(weighting.init, jax.random.fold_in(key, 1))}
    optimizers = classification.make_optimizer(recipe), _weight_optimizer(weight_recipe)
    return init_sharded(lambda first, second: init_bilevel(first, optimizers[0], second, optimizers[1]), params, outer)


def _as_examples(recipe: Recipe, pictures: TrainingSet, num_classes: int) -> Examples:
    targets = optax.smooth_labels(jax.nn.one_hot(pictures.labels, num_classes), recipe.label_smoothing)
    return Examples(pictures.images, targets)


@partial(jax.jit, static_argnames=("module", "weighting", "recipe", "weight_recipe"), donate_argnames="state")
def _value_step(
    module: Any,
    weighting: Weighting,
    recipe: Recipe,
    weight_recipe: WeightRecipe,
    state: BilevelState,
    real: TrainingSet,
    pool: TrainingSet,
    validation: TrainingSet,
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One bilevel update on a fresh batch of real and synthetic pictures; the real ones keep weight 1."""
    batch = classification.draw_batch(recipe, real, pool, key)
    size = weight_recipe.validation_batch_size
    if size:
        chosen = jax.random.choice(jax.random.fold_in(key, 3), validation.labels.shape[0], (size,))
        validation = validation.take(chosen)

    def apply(params: Params, images: jax.Array) -> jax.Array:
        return module.apply({"params": params}, images)

    num_classes = jax.eval_shape(apply, state.params, batch.images).shape[-1]
    is_synthetic = jnp.arange(recipe.batch_size) >= recipe.batch_size - recipe.num_synthetic
    update = make_bilevel_update(
        apply, weighting, classification.make_optimizer(recipe), _weight_optimizer(weight_recipe)
    )
    examples = dataclasses.replace(_as_examples(recipe, batch, num_classes), is_weighted=is_synthetic)
    return update(state, examples, _as_examples(recipe, validation, num_classes))
