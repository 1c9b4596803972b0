"""Training until held-out accuracy stalls, as a learner practises until it needs new examples."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import struct

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import (
    TrainingState,
    copy_params,
    init_classifier,
    init_training,
    make_update,
    predict_logits,
)
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params


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
    loop: TrainingLoop,
) -> Practised:
    """Trains until the accuracy on held-out images has stalled, at most `config.steps` steps.

    Args:
        classifier: the network.
        config: its training; the learning rate's way is that of all its steps, walked in part.
        patience: when to stop.
        examples: real images, synthetic ones, and held-out real ones.
        params: to go on from; None: begins with fresh ones.
        key: PRNG key.
        loop: runs the steps.
    """
    real, synthetic, held_out = examples
    if params is None:
        params = init_classifier(classifier, real.inputs.shape[1:], jax.random.fold_in(key, 0))
    else:
        params = copy_params(params)
    labels = to_host(held_out.labels)
    train = make_update(classifier, config, real, synthetic, jax.random.fold_in(key, 1))

    def update(state: _State, step: int) -> tuple[_State, dict[str, jax.Array]]:
        training, scalars = train(state.training, step)
        if (step + 1) % patience.check_every:
            return dataclasses.replace(state, training=training), scalars
        logits = predict_logits(classifier, training[0], held_out.inputs, config.eval_batch_size)
        accuracies = state.accuracies.copy()
        accuracies[state.looks] = (logits.argmax(-1) == labels).mean()
        return _State(training, accuracies, state.looks + 1), scalars

    def has_stalled(state: _State) -> bool:
        seen = state.accuracies[: state.looks]
        return len(seen) > 0 and len(seen) - 1 - int(np.argmax(seen)) >= patience.checks

    most = config.steps // patience.check_every
    state = loop.run(
        _State(init_training(config, params), np.zeros(most, np.float32), 0), config.steps, update, has_stalled
    )
    return Practised(state.training[0], state.accuracies[: state.looks])


@struct.dataclass
class _State:
    """Between two steps.

    Attributes:
        training: of the classifier.
        accuracies: of all looks that there may be; zero of those to come.
        looks: done.
    """

    training: TrainingState
    accuracies: np.ndarray
    looks: int
