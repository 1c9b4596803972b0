"""Trains several classifiers of a kind: in turn, or on a CPU side by side.

A step of a small network is too short for XLA to divide it between cores: on two of them it takes as long as on one
(README.md in `utilgen_jax/bench`). Trainings that do not depend on each other then run in threads, with the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.batches import is_streamed
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import train_classifier
from utilgen_jax.runtime.threads import num_cores, run_at_once
from utilgen_jax.runtime.training_loop import TrainingLoop, tell_nothing
from utilgen_jax.types import OnStep, Params

_MOST_THREADS = 4
# Numbers in a batch of images; above, a step is work enough for all cores, and its memory is not there twice.
_MOST_NUMBERS = 2**20


class Training(NamedTuple):
    """What one of several trainings learns from.

    Attributes:
        real: the real images.
        synthetic: synthetic images, or None.
        key: PRNG key.
    """

    real: Examples
    synthetic: Examples | None
    key: jax.Array


def train_classifiers(
    classifier: Classifier, config: ClassifierConfig, trainings: Sequence[Training], loop: TrainingLoop
) -> list[Params]:
    """Trains a classifier of each training, see `train_classifier`.

    Args:
        classifier: the network of all.
        config: of each training.
        trainings: independent of each other.
        loop: runs the steps, a part of it those of each training. It tells of the steps done in all: after each step
            where they run in turn; where some run at once, after each step of the first of these.

    Returns:
        The trained parameters, in order.
    """
    others = [training.synthetic for training in trainings]
    threads = min(len(trainings), num_threads(config, trainings[0].real, *others)) if trainings else 1
    if threads == 1:
        return [
            train_classifier(classifier, config, *training, loop.part(str(number), number * config.steps))
            for number, training in enumerate(trainings)
        ]
    trained: list[Params] = []
    for start in range(0, len(trainings), threads):
        numbers = range(start, min(start + threads, len(trainings)))
        of_first = _counted(loop.on_step, start * config.steps, len(numbers))
        loops = [
            dataclasses.replace(loop.part(str(number)), on_step=of_first if number == start else tell_nothing)
            for number in numbers
        ]
        trained += run_at_once(
            [
                partial(train_classifier, classifier, config, *trainings[number], own)
                for number, own in zip(numbers, loops, strict=True)
            ]
        )
    return trained


def _counted(on_step: OnStep, done: int, number: int) -> OnStep:
    """Tells of the steps of so many trainings at once, after the steps that were done before."""
    return lambda step, loss: on_step(done + number * step, loss)


def num_threads(config: ClassifierConfig, images: Examples, *others: Examples | None) -> int:
    """How many trainings on such images run at once.

    Args:
        config: of each training.
        images: float32 [N, H, W, C].
        *others: that are trained on beside these.
    """
    mesh = jax.sharding.get_mesh()
    # Several devices or processes have to be given the same work in the same order.
    if is_streamed(images, *others):
        return 1
    alone = jax.process_count() == 1 and (jax.device_count() if mesh.empty else mesh.size) == 1
    small = config.batch_size * math.prod(images.inputs.shape[1:]) <= _MOST_NUMBERS
    if not (alone and small and jax.default_backend() == "cpu"):
        return 1
    return min(num_cores(), _MOST_THREADS)
