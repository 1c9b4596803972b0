import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import softmax

from tests import toy_images
from tests.cut_off import assert_goes_on
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.ensemble import ensemble_labels, ensemble_steps
from utilgen_jax.valuation.noise_transition import class_posterior

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=12)
CLASSIFIER = Classifier(TinyClassifier())
KEY = jax.random.key(7)
# The classes in turn, as a pool holds them.
IN_TURN = np.arange(8 * NUM_CLASSES).reshape(NUM_CLASSES, 8).T.reshape(-1)


@pytest.fixture(scope="module")
def toy():
    return draw_set(3, seed=0)[0], draw_set(8, seed=1, wrong=0.25)[0].take(IN_TURN)


def label(toy, ensemble, config=CONFIG, loop=None):
    return ensemble_labels(CLASSIFIER, config, ensemble, *toy, KEY, loop or TrainingLoop())


def say(real, others, images, member, config=CONFIG):
    """What a classifier of the real and other images says of images, float32 [N, K]."""
    config = dataclasses.replace(config, mixing="none")
    key = jax.random.fold_in(KEY, member)
    params = train_classifier(CLASSIFIER, config, real, others, key, TrainingLoop())
    return softmax(predict_logits(CLASSIFIER, params, images.inputs, 500), axis=-1)


@pytest.mark.slow
def test_members_are_of_the_shots_and_of_the_other_half_as_it_came_and_as_the_shots_label_it(toy):
    real, pool = toy
    # The mixing is the ensemble's, not the final classifier's.
    found = label(toy, EnsembleConfig(members=2, mixing="none"), dataclasses.replace(CONFIG, mixing="cutmix"))
    of_shots = (say(real, None, pool, 0) + say(real, None, pool, 1)) / 2
    np.testing.assert_allclose(found.of_shots, of_shots, atol=1e-5)
    relabelled = class_posterior(of_shots, np.asarray(pool.labels)).probabilities
    halves = np.arange(len(pool)) // NUM_CLASSES % 2
    expected = []
    for first_member, targets in ((2, np.asarray(pool.dense().targets)), (4, relabelled)):
        said = np.zeros_like(of_shots)
        for half in (0, 1):
            others, own = np.flatnonzero(halves != half), np.flatnonzero(halves == half)
            taught = Examples(pool.inputs[others], targets[others], weights=pool.weights[others])
            said[own] = say(real, taught, pool.take(own), first_member + half)
        expected.append(said)
    np.testing.assert_allclose(found.of_pool, expected[0], atol=1e-5)
    np.testing.assert_allclose(found.of_relabelled, expected[1], atol=1e-4)
    np.testing.assert_allclose(found.soft_labels, (of_shots + expected[0] + expected[1]) / 3, atol=1e-4)
    # All members, in this order, are there to teach.
    assert {leaf.shape[0] for leaf in jax.tree.leaves(found.members)} == {6}
    first, last = (jax.tree.map(lambda leaf, place=place: leaf[place], found.members) for place in (0, -1))
    everything = CONFIG.eval_batch_size
    said = [softmax(predict_logits(CLASSIFIER, params, pool.inputs, everything), axis=-1) for params in (first, last)]
    np.testing.assert_allclose(said[0], say(real, None, pool, 0), atol=1e-5)
    second_half = halves == 1
    np.testing.assert_allclose(said[1][second_half], expected[1][second_half], atol=1e-4)
    kinds = found.members_of_shots, found.members_of_pool, found.members_of_relabelled
    assert [{leaf.shape[0] for leaf in jax.tree.leaves(kind)} for kind in kinds] == [{2}, {2}, {2}]
    jax.tree.map(
        lambda some, all_: np.testing.assert_array_equal(some, all_[2:4]), found.members_of_pool, found.members
    )
    posterior = class_posterior(found.of_relabelled, np.asarray(pool.labels))
    np.testing.assert_array_equal(found.posterior(np.asarray(pool.labels)).probabilities, posterior.probabilities)


@pytest.mark.slow
def test_an_image_is_not_labelled_by_a_classifier_that_was_trained_on_it(toy, monkeypatch):
    real, pool = toy
    # The noise transition is one for all images; without it they meet in training alone.
    said = SimpleNamespace(probabilities=np.asarray(pool.dense().targets))
    monkeypatch.setattr("utilgen_jax.valuation.ensemble.class_posterior", lambda probabilities, labels: said)
    before = label(toy, EnsembleConfig(members=1))
    inputs = np.array(pool.inputs)
    inputs[0] = -inputs[0]
    after = label((real, dataclasses.replace(pool, inputs=inputs)), EnsembleConfig(members=1))
    own_half = np.arange(len(pool)) // NUM_CLASSES % 2 == 0
    for name in ("of_pool", "of_relabelled"):
        changed = np.abs(getattr(before, name) - getattr(after, name)).max(-1) > 1e-6
        # Image 0 is of the first half; it has a part in what is said of the second, and is another one itself.
        assert changed[0] and not changed[own_half][1:].any() and changed[~own_half].any()


def test_steps_are_counted_over_the_members(toy):
    seen, config = [], dataclasses.replace(CONFIG, steps=2)
    ensemble = EnsembleConfig(members=2, pool_members=2)
    label(toy, ensemble, config, TrainingLoop(lambda step, loss: seen.append(step)))
    assert seen == list(range(1, 21)) and ensemble_steps(config, ensemble) == 20


def test_ensembles_that_were_cut_off_go_on_with_the_same_bits(toy, tmp_path):
    ensemble, config = EnsembleConfig(members=1, pool_members=1), dataclasses.replace(CONFIG, steps=3)
    assert_goes_on(lambda loop: label(toy, ensemble, config, loop), tmp_path, cut_after=11)
