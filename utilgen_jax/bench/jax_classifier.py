"""Our side of `bench classifier`: the training step of the downstream classifier, on random images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.bench.compiled import prepare_compiled
from utilgen_jax.bench.timing import Prepared
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.classifier.train import init_classifier, init_training, learning_step

NUM_CLASSES, LEARNING_RATE, WEIGHT_DECAY = 1000, 0.1, 1e-4


def prepare_ours(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Prepared:
    """Compiles the training step and runs it once.

    Args:
        name: of the network.
        dtype: of activations.
        images: float32 [B, H, W, 3].
        labels: int [B].
    """
    config = ClassifierConfig(name=name, dtype=dtype, optimizer="sgd", weight_decay=WEIGHT_DECAY, label_smoothing=0.0)
    classifier = make_classifier(config, NUM_CLASSES, images.shape[1], images.shape[3])
    params = init_classifier(classifier, images.shape[1:], jax.random.key(0))
    state = init_training(config, params)
    batch = (jnp.asarray(images), jax.nn.one_hot(labels, NUM_CLASSES), jnp.ones(NUM_CLASSES))

    def step(compiled: Any) -> jax.Array:
        nonlocal state
        *state, loss = compiled(classifier, *state, *batch, LEARNING_RATE)
        return loss

    return prepare_compiled(lambda: learning_step.trace(classifier, config, *state, *batch, LEARNING_RATE), step)
