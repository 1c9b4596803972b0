"""Trains classifiers, weight network and adapter by the one update, the folds of the shots in turn.

Each fold has a classifier. It starts with plain steps on the other shots and the pool, as in `valuation.cross_fit`;
then it takes its turn in the joint update, in which its loss on the fold's own images teaches the outer level. That
level, of weight network, attributes, LoRA and difficulty, is one for all folds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.bilevel.folds import FoldStates
from utilgen_jax.bilevel.weightings import WeightingInputs
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, train_classifiers
from utilgen_jax.classifier.train import logits_of_loss, predict_logits
from utilgen_jax.data.splits import Fold
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.joint.batches import make_batches
from utilgen_jax.joint.program import JointData, JointProgram
from utilgen_jax.joint.step import first_inputs, joint_update
from utilgen_jax.runtime.sharding import init_sharded, to_host
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params
from utilgen_jax.valuation.cross_fit import PREDICTION_BATCH_SIZE, init_state, smoothed


@struct.dataclass
class JointResult:
    """What the update has trained.

    Attributes:
        adapter: LoRA, difficulty encoder, and the logits of each class's requested difficulty.
        weighting: parameters of the weight network and of the attributes.
        classifiers: moving averages of the folds' classifiers, or without an average the last ones, stacked [F, ...].
    """

    adapter: Adapter
    weighting: Params
    classifiers: Params

    @property
    def attribute_logits(self) -> np.ndarray | None:
        """What is added to the attributes' log-probabilities, float32 [A]; None where they were not trained."""
        return self.weighting["attributes"]["logits"] if "attributes" in self.weighting else None

    @property
    def difficulties(self) -> np.ndarray:
        """The difficulty to request for each class, float32 [K] in (0, 1)."""
        assert self.adapter.difficulty_logits is not None
        return to_host(jax.nn.sigmoid(self.adapter.difficulty_logits))


@cache
def _make_init_outer(program: JointProgram) -> Callable[..., dict[str, Any]]:
    """The same function each time, as `jax.jit` knows a function by identity: it takes seconds to compile."""

    def init(params: Params, inputs: SampleInputs, start: Adapter | None, key: jax.Array) -> dict[str, Any]:
        # A copy: the update takes over the memory of its state.
        return program.init_outer(params, inputs, jax.tree.map(jnp.copy, start), key)

    return init


def train_jointly(
    classifier: Classifier,
    program: JointProgram,
    sd: StableDiffusion,
    real: Examples,
    pool: Examples,
    data: JointData,
    folds: Sequence[Fold],
    start: Adapter | None,
    key: jax.Array,
    loop: TrainingLoop,
) -> JointResult:
    """Trains all parts side by side.

    Args:
        classifier: as in the final training.
        program: configs, and which parts are trained.
        sd: the generator; its weights stay as they are.
        real: the shots, with difficulty and attributes of 0.
        pool: images of the generator as it is, with attributes, and difficulty in the middle.
        data: see `JointData`.
        folds: of the shots.
        start: of the adapter, see `JointProgram.init_outer`.
        key: PRNG key.
        loop: runs the steps, `num_steps` in all; it tells of further scalars of the bilevel ones.
    """
    plain_config = dataclasses.replace(program.config, steps=program.joint.plain_steps)
    inputs = first_inputs(program, sd, data)
    outer_key = jax.random.fold_in(key, 0)
    start = start or program.init_lora(sd.params, inputs, outer_key)
    outer = init_sharded(_make_init_outer(program), sd.params, inputs, start, outer_key)
    trainings = [
        Training(real.take(fold.train_indices), pool, jax.random.fold_in(jax.random.fold_in(key, 1), number))
        for number, fold in enumerate(folds)
    ]
    start_of_folds = FoldStates.start(
        [
            init_state(params, program.optimizer, outer, program.outer_optimizer, program.joint.ema_decay)
            for params in train_classifiers(classifier, plain_config, trainings, loop.part("plain"))
        ]
    )

    batch_of = make_batches(program, real, pool, folds, jax.random.fold_in(key, 3))

    def update(states: FoldStates, step: int) -> tuple[FoldStates, dict[str, Any]]:
        number, step_key = step % len(folds), jax.random.fold_in(jax.random.fold_in(key, 2), step)
        own, batch = states.take(number), batch_of(step)
        state, metrics = joint_update(program, classifier, own, sd, data, batch, step_key)
        return states.put(number, state), metrics.told

    joint_loop = loop.part("update", len(folds) * plain_config.steps)
    trained = joint_loop.run(start_of_folds, program.joint.steps, update)
    averages = [fold.ema_params if program.joint.ema_decay else fold.params for fold in trained.folds]
    averages, weighting = jax.tree.map(to_host, (averages, trained.outer["weighting"]))
    classifiers = jax.tree.map(lambda *leaves: np.stack(leaves), *averages)
    return JointResult(trained.outer["adapter"], weighting, classifiers)


def num_steps(program: JointProgram, num_folds: int) -> int:
    """The steps that `train_jointly` tells of."""
    return num_folds * program.joint.plain_steps + program.joint.steps


def predict_weights(
    classifier: Classifier, program: JointProgram, result: JointResult, shots: Sequence[Examples], images: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """The weights that the weight network gives to images, by each fold's classifier.

    Args:
        classifier: as in `train_jointly`.
        program: as in `train_jointly`.
        result: of `train_jointly`.
        shots: that each fold's classifier was trained on.
        images: with attributes and difficulty.

    Returns:
        Weights and losses, float32 [F, N]. All weights are 1 where no network was trained.
    """
    examples = dataclasses.replace(smoothed(program.config, images), inputs=None)
    weights, losses = [], []
    for fold, known in enumerate(shots):
        params = jax.tree.map(lambda leaf, fold=fold: leaf[fold], result.classifiers)
        logits = predict_logits(classifier, params, images.inputs, PREDICTION_BATCH_SIZE)
        seen = logits_of_loss(program.config, count_classes(known), jax.numpy.asarray(logits))
        inputs = WeightingInputs(examples, seen)
        weights.append(to_host(program.network.apply(result.weighting.get("network", {}), inputs)[0]))
        losses.append(to_host(inputs.losses))
    return np.stack(weights), np.stack(losses)
