"""Our side of `bench bilevel`: the classifier's plain step, and the bilevel update with two weightings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.bench.compiled import prepare_update
from utilgen_jax.bench.jax_unet import random_params
from utilgen_jax.bench.peaks import jax_matmul
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.bilevel import BilevelMetrics, BilevelState, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import Weighting, loss_network, saflex, uniform
from utilgen_jax.models.classifiers import build_classifier

IMAGE_SIZE, NUM_CLASSES, WIDTH, HIDDEN = 32, 10, 512, 100
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, WEIGHTING_LEARNING_RATE = 0.02, 0.9, 5e-4, 1e-3
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What both sides are given: numpy arrays.

    Attributes:
        images: float32 [B, 32, 32, 3].
        labels: int32 [B].
        validation_images: the same for validation.
        validation_labels: int [N].
    """

    images: np.ndarray
    labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray


def draw_inputs(batch_size: int) -> Inputs:
    """Draws inputs, the same ones each time."""
    generator = np.random.default_rng(_SEED)

    def images() -> np.ndarray:
        return generator.standard_normal((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)

    def labels() -> np.ndarray:
        return generator.integers(NUM_CLASSES, size=batch_size, dtype=np.int32)

    return Inputs(images(), labels(), images(), labels())


class JaxBilevel:
    """A classifier and a weight network with random parameters.

    Attributes:
        params: of the classifier, linen names.
        weighting_params: the same of the weight network.
    """

    def __init__(self, model: str) -> None:
        """Draws the parameters of a `build_classifier` model."""
        self._module: Any = build_classifier(model, NUM_CLASSES, WIDTH, IMAGE_SIZE)
        example = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
        shapes = jax.eval_shape(self._module.init, jax.random.key(_SEED), example)["params"]
        self.params = random_params(shapes, "float32")
        self.weighting_params = loss_network(HIDDEN).init(jax.random.key(_SEED))

    def plain(self, inputs: Inputs) -> Prepared:
        """The classifier's step alone; outputs as of all steps, see `weight_network`."""
        return self._prepare(uniform(), {}, inputs, validate=False)

    def weight_network(self, inputs: Inputs) -> Prepared:
        """With the outer step of a weight network on the loss; outputs of the first step: losses, norms."""
        return self._prepare(loss_network(HIDDEN), {"weighting": self.weighting_params}, inputs)

    def saflex(self, inputs: Inputs) -> Prepared:
        """With SAFLEX's weights and soft labels."""
        return self._prepare(saflex(), {}, inputs)

    def matmul(self, size: int) -> Work:
        """XLA's matrix product in float32."""
        return jax_matmul("float32", size)

    def _prepare(self, weighting: Weighting, outer: dict[str, Any], inputs: Inputs, validate: bool = True) -> Prepared:
        optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM))
        outer_optimizer = optax.adam(WEIGHTING_LEARNING_RATE)
        examples = _examples(inputs.images, inputs.labels)
        validation = _examples(inputs.validation_images, inputs.validation_labels) if validate else None
        update = make_bilevel_update(self._apply, weighting, optimizer, outer_optimizer)
        # Each step donates its state.
        params, outer = jax.tree.map(jnp.copy, (self.params, outer))
        state = init_bilevel(params, optimizer, outer, outer_optimizer)

        def outputs(first: BilevelState, metrics: BilevelMetrics) -> dict[str, Any]:
            found = {"train_loss": metrics.train_loss, "params": optax.tree.norm(first.params)}
            if validate:
                found["validation_loss"] = metrics.validation_loss
            if outer:
                change = jax.tree.map(jnp.subtract, first.outer["weighting"], self.weighting_params)
                found["weighting_change"] = optax.tree.norm(change)
            return found

        return prepare_update(update, state, (examples, validation), outputs)

    def _apply(self, params: Any, images: jax.Array) -> jax.Array:
        return self._module.apply({"params": params}, images)


STEPS: dict[str, Callable[[JaxBilevel, Inputs], Prepared]] = {
    "plain": JaxBilevel.plain,
    "weight_network": JaxBilevel.weight_network,
    "saflex": JaxBilevel.saflex,
}


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(jnp.asarray(images), jax.nn.one_hot(labels, NUM_CLASSES))
