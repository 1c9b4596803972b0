"""Training until held-out accuracy stalls, as a learner practises until it needs new examples."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import struct

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import copy_params, init_classifier, predict_logits, training_steps
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.types import OnStep, Params


@dataclasses.dataclass(frozen=True)
class Patience:
    """When accuracy is taken to stall.

    Attributes:
        check_every: steps between two looks at the accuracy.
        checks: looks without a new best after which training ends.
    """

    check_every: int
    checks: int


@struct.dataclass
class Practised:
    """What a classifier has become.

    Attributes:
        params: of the classifier.
        accuracies: on the held-out images, a look each: float32 [L].
    """

    params: Params
    accuracies: np.ndarray


def train_until_stall(
    classifier: Classifier,
    config: ClassifierConfig,
    patience: Patience,
    examples: tuple[Examples, Examples, Examples],
    params: Params | None,
    key: jax.Array,
    on_step: OnStep,
) -> Practised:
    """Trains until the accuracy on held-out images has stalled, at most `config.steps` steps.

    Args:
        classifier: the network.
        config: its training; the learning rate's way is that of all its steps, walked in part.
        patience: when to stop.
        examples: real images, synthetic ones, and held-out real ones.
        params: to go on from; None: begins with fresh ones.
        key: PRNG key.
        on_step: called after each step with (steps done, loss on the device).
    """
    real, synthetic, held_out = examples
    if params is None:
        params = init_classifier(classifier, real.inputs.shape[1:], jax.random.fold_in(key, 0))
    else:
        params = copy_params(params)
    labels, accuracies = to_host(held_out.labels), []
    steps = training_steps(classifier, config, params, real, synthetic, jax.random.fold_in(key, 1))
    for step, (params, loss) in enumerate(steps, start=1):
        on_step(step, loss)
        if step % patience.check_every == 0:
            logits = predict_logits(classifier, params, held_out.inputs, config.eval_batch_size)
            accuracies.append((logits.argmax(-1) == labels).mean())
            if len(accuracies) - 1 - int(np.argmax(accuracies)) >= patience.checks:
                break
    return Practised(params, np.array(accuracies, np.float32))
