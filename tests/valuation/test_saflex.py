import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests import toy_images
from tests.cut_off import assert_goes_on
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_batch, draw_images, draw_set
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.bilevel.weightings import WeightingInputs, saflex
from utilgen_jax.classifier.dataset import StepKey, draw_synthetic, random_shift
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import init_classifier, make_optimizer, predict_logits, train_classifier
from utilgen_jax.data.splits import Fold, cross_fit_folds
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.config import SaflexConfig
from utilgen_jax.valuation.cross_fit import smoothed
from utilgen_jax.valuation.saflex import SaflexProgram, train_saflex

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=4)
CLASSIFIER = Classifier(TinyClassifier())
DEFAULTS = SaflexConfig()
LABELS = np.repeat(np.arange(NUM_CLASSES), 6)


def train(real, pool, config=CONFIG, settings=DEFAULTS, folds=None, seed=0, loop=None):
    folds = cross_fit_folds(real.labels, 2, 0) if folds is None else folds
    program, key = SaflexProgram(config, settings), jax.random.key(seed)
    return train_saflex(CLASSIFIER, program, (real, folds), pool, key, loop or TrainingLoop())


def largest_difference(first, second):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), first, second)
    return max(jax.tree.leaves(differences))


@pytest.fixture(scope="module")
def toy():
    return draw_set(4, seed=0)[0], draw_set(6, seed=1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_wrong_labels_are_found_and_the_classifier_is_better_for_it(memory):
    real, _ = draw_set(6, seed=10)
    pool, is_wrong = draw_set(40, seed=20, wrong=0.5)
    truth = np.repeat(np.arange(NUM_CLASSES), 40)
    config = dataclasses.replace(CONFIG, steps=200, batch_size=32, synthetic_fraction=0.75, learning_rate=0.02)
    found = train(real, pool, config, SaflexConfig(memory=memory))
    assert found.soft_labels.shape == (160, NUM_CLASSES)
    np.testing.assert_allclose(found.soft_labels.sum(-1), 1, rtol=1e-4)
    own = found.soft_labels[np.arange(160), pool.labels]
    assert roc_auc_score(~is_wrong, own) > 0.9 and roc_auc_score(~is_wrong, found.weights) > 0.55
    # At zero influence a class that is not the label has 0.1 / 3.
    gained = found.soft_labels[np.arange(160), truth][is_wrong].mean() / (0.1 / 3)
    assert gained > (10 if memory else 2)

    only = dataclasses.replace(config, synthetic_fraction=1.0)
    test, _ = draw_set(100, seed=2)
    accuracy = {
        name: (predict_logits(CLASSIFIER, params, test.inputs, 400).argmax(-1) == test.labels).mean()
        for name, params in {
            "plain": train_classifier(CLASSIFIER, only, real, pool, jax.random.key(0), TrainingLoop()),
            "saflex": train(real, pool, only, SaflexConfig(memory=memory)).params,
        }.items()
    }
    assert accuracy["saflex"] > accuracy["plain"]


@pytest.mark.parametrize("changes", [{}, {"mixing": "mixup", "loss": "balanced_softmax"}, {"synthetic_fraction": 1.0}])
def test_plain_steps_are_those_of_all_methods(toy, changes):
    config = dataclasses.replace(CONFIG, **changes)
    losses = []

    def on_step(step, loss, **scalars):
        losses.append(float(loss))

    found = train(*toy, config, SaflexConfig(plain_fraction=1.0), loop=TrainingLoop(on_step))
    expected = []
    params = train_classifier(
        CLASSIFIER, config, *toy, jax.random.key(0), TrainingLoop(lambda step, loss: expected.append(float(loss)))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.params, params)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # Of images that no step has looked at, nothing is known.
    np.testing.assert_array_equal(found.weights, np.ones(24))
    np.testing.assert_array_equal(found.soft_labels, np.eye(NUM_CLASSES)[LABELS])


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_labels_are_the_closed_form_of_the_steps_influence(toy, memory):
    real, pool = toy
    config = dataclasses.replace(CONFIG, steps=1, synthetic_fraction=1.0, max_shift=1)
    settings = SaflexConfig(plain_fraction=0.0, memory=memory)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 0)
    found = train(real, pool, config, settings, seed=3)

    params = init_classifier(CLASSIFIER, (8, 8, 1), jax.random.fold_in(jax.random.key(3), 0))
    prior = jnp.where(jnp.eye(NUM_CLASSES)[LABELS] == 1, 0.9, 0.1 / 3)
    batch = draw_batch(config, real, dataclasses.replace(pool, targets=prior), key)
    drawn = np.asarray(draw_synthetic(config, 24, key))
    np.testing.assert_allclose(batch.targets, prior[drawn])
    validation_key = jax.random.fold_in(jax.random.fold_in(key, StepKey.VALIDATION), 1)
    validation = dataclasses.replace(real, inputs=random_shift(real.inputs, validation_key, 1))
    optimizer = make_optimizer(config)
    matrix = influence(
        CLASSIFIER.apply,
        optimizer,
        params,
        optimizer.init(params),
        smoothed(config, batch),
        smoothed(config, validation),
    ).matrix
    weights, targets = saflex(1.0).apply({}, WeightingInputs(batch, matrix, matrix))
    for image in np.unique(drawn):
        places = drawn == image
        np.testing.assert_allclose(found.soft_labels[image], targets[places].mean(0), rtol=1e-3)
        assert found.weights[image] == pytest.approx(weights[places].mean())
    never = np.setdiff1d(np.arange(24), drawn)
    np.testing.assert_array_equal(found.soft_labels[never], np.eye(NUM_CLASSES)[LABELS[never]])


@pytest.mark.slow
def test_memory_adds_the_evidence_of_the_steps(toy):
    real, pool = toy
    config = dataclasses.replace(CONFIG, steps=30, synthetic_fraction=0.75)
    distance = {}
    for memory in (0.0, 0.5, 1.0):
        found = train(real, pool, config, SaflexConfig(plain_fraction=0.0, memory=memory))
        distance[memory] = np.abs(found.soft_labels - np.where(np.eye(NUM_CLASSES)[LABELS] == 1, 0.9, 0.1 / 3)).mean()
    assert distance[0.0] < distance[0.5] < distance[1.0]


@pytest.mark.slow
def test_the_step_does_not_train_on_what_it_validates_on(toy):
    real, pool = toy
    folds = cross_fit_folds(real.labels, 2, 0)
    others = real.inputs.copy()
    classes = (np.asarray(real.labels)[folds[0].validation_indices] + 1) % NUM_CLASSES
    others[folds[0].validation_indices] = draw_images(classes, seed=5)
    changed = dataclasses.replace(real, inputs=others)
    # The first step validates on the first fold. Its images decide on labels; without influence on nothing at all.
    config = dataclasses.replace(CONFIG, steps=2, mixing="none")
    first, second = (
        train(shots, pool, config, SaflexConfig(plain_fraction=0.0), folds=[folds[0]]) for shots in (real, changed)
    )
    assert largest_difference(first.soft_labels, second.soft_labels) > 1e-3
    kept = SaflexConfig(plain_fraction=0.0, temperature=1e9, memory=0.0)
    first, second = (train(shots, pool, config, kept, folds=[folds[0]]) for shots in (real, changed))
    np.testing.assert_allclose(first.soft_labels, second.soft_labels, atol=1e-5)


def test_every_fold_validates_in_turn_and_all_shots_where_none_is_trained_on(toy, monkeypatch):
    real, pool = toy
    seen = []
    module = "utilgen_jax.valuation.saflex"

    def step(classifier, program, state, data, key):
        batch, validation, _, _ = data
        seen.append((np.asarray(batch.inputs), np.asarray(validation.inputs)))
        return state, SimpleNamespace(told={"loss": 0.0})

    monkeypatch.setattr(f"{module}._saflex_step", step)
    folds = [Fold(np.arange(4, 16), np.arange(4)), Fold(np.arange(4), np.arange(4, 16))]
    config = dataclasses.replace(CONFIG, max_shift=0)
    train(real, pool, config, SaflexConfig(plain_fraction=0.0), folds=folds)
    assert [len(validation) for _, validation in seen] == [4, 12, 4, 12]
    for batch, validation in seen:
        shots = {image.tobytes() for image in batch[: config.batch_size - config.num_synthetic]}
        assert len(shots) > 1 and not shots & {image.tobytes() for image in validation}
    seen.clear()
    only = dataclasses.replace(config, synthetic_fraction=1.0)
    train(real, pool, only, SaflexConfig(plain_fraction=0.0), folds=folds)
    pool_images = {image.tobytes() for image in np.asarray(pool.inputs)}
    for batch, validation in seen:
        np.testing.assert_array_equal(validation, real.inputs)
        assert {image.tobytes() for image in batch} <= pool_images


@pytest.mark.slow
def test_all_settings_of_the_classifiers_training_are_obeyed(toy):
    settings = SaflexConfig(plain_fraction=0.0, validation_batch_size=5)
    found = {
        name: train(*toy, dataclasses.replace(CONFIG, **changes), settings)
        for name, changes in {
            "plain": {},
            "mixing": {"mixing": "cutmix"},
            "loss and augmentation": {"loss": "balanced_softmax", "augmentation": "randaugment"},
        }.items()
    }
    for name, each in found.items():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(each.params))
        assert name == "plain" or largest_difference(each.params, found["plain"].params) > 1e-4
    assert largest_difference(found["plain"], train(*toy, CONFIG, settings)) == 0
    assert largest_difference(found["plain"], train(*toy, CONFIG, settings, seed=1)) > 1e-3
    averaged = dataclasses.replace(settings, validation_decay=0.9)
    assert largest_difference(found["plain"].soft_labels, train(*toy, CONFIG, averaged).soft_labels) > 1e-4
    # There is no average where nothing real is trained on.
    only = dataclasses.replace(CONFIG, synthetic_fraction=1.0)
    assert largest_difference(train(*toy, only, settings), train(*toy, only, averaged)) == 0


@pytest.mark.parametrize("cut_after", [2, 4])
def test_a_training_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, cut_after):
    real, pool = draw_set(4, seed=0)[0], draw_set(8, seed=1)[0]
    settings = SaflexConfig(plain_fraction=0.5)
    assert_goes_on(lambda loop: train(real, pool, settings=settings, loop=loop), tmp_path, cut_after)
