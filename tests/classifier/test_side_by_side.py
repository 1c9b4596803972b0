import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cut_off import assert_goes_on
from tests.toy_images import CONFIG, TinyClassifier, draw_set
from utilgen_jax.classifier import side_by_side
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import Training, num_threads, train_classifiers
from utilgen_jax.classifier.train import train_classifier
from utilgen_jax.runtime.sharding import make_mesh
from utilgen_jax.runtime.threads import check_stopped
from utilgen_jax.runtime.training_loop import TrainingLoop

CLASSIFIER, SHORT = Classifier(TinyClassifier()), dataclasses.replace(CONFIG, steps=6)
REAL, POOL = draw_set(4, seed=0, noise=0.5)[0], draw_set(8, seed=1, noise=0.5)[0]
TRAININGS = [Training(REAL, pool, jax.random.key(seed)) for seed, pool in enumerate((None, POOL, POOL))]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_is_trained_as_it_would_be_alone(threads, monkeypatch):
    monkeypatch.setattr(side_by_side, "num_threads", lambda *arguments: threads)
    seen = []
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        trained = train_classifiers(CLASSIFIER, SHORT, TRAININGS, TrainingLoop(lambda step, loss: seen.append(step)))
        alone = [train_classifier(CLASSIFIER, SHORT, *training, TrainingLoop()) for training in TRAININGS]
    jax.tree.map(np.testing.assert_array_equal, trained, alone)
    # Steps of all trainings; of some at once, each counts for all of them.
    expected = {1: list(range(1, 19)), 2: [*range(2, 13, 2), *range(13, 19)], 3: list(range(3, 19, 3))}
    assert seen == expected[threads]


def test_a_training_that_fails_ends_the_others(monkeypatch):
    monkeypatch.setattr(side_by_side, "num_threads", lambda *arguments: 2)
    ended, is_late = threading.Event(), threading.Event()

    def train(classifier, config, real, synthetic, key, loop):
        if synthetic is None:
            raise FloatingPointError("of the first")
        try:
            for _ in range(10_000):
                check_stopped()
                time.sleep(0.001)
            is_late.set()
        finally:
            ended.set()

    monkeypatch.setattr(side_by_side, "train_classifier", train)
    with pytest.raises(FloatingPointError, match="of the first"):
        train_classifiers(CLASSIFIER, SHORT, TRAININGS[:2], TrainingLoop())
    assert ended.is_set() and not is_late.is_set()


def test_only_small_steps_on_one_cpu_run_at_once(monkeypatch):
    monkeypatch.setattr(side_by_side, "num_cores", lambda: 16)
    large = dataclasses.replace(REAL, inputs=jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.float32))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert num_threads(CONFIG, REAL) == 4 and num_threads(CONFIG, large) == 1
        monkeypatch.setattr(side_by_side, "num_cores", lambda: 1)
        assert num_threads(CONFIG, REAL) == 1
    with jax.set_mesh(make_mesh()):
        assert num_threads(CONFIG, REAL) == 1
    assert train_classifiers(CLASSIFIER, SHORT, [], TrainingLoop()) == []


@pytest.mark.parametrize(("threads", "cut_after"), [(1, 8), (2, 8), (2, 15)])
def test_those_that_have_ended_are_not_trained_again(threads, cut_after, monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, "num_threads", lambda *arguments: threads)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert_goes_on(lambda loop: train_classifiers(CLASSIFIER, SHORT, TRAININGS, loop), tmp_path, cut_after)
