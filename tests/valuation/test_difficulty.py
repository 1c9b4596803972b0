import dataclasses

import jax
import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests import toy_images
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_images, draw_set
from utilgen_jax.bilevel.examples import labelled
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.difficulty import balanced_resample, cross_fitted_difficulty, difficulty

CONFIG = dataclasses.replace(toy_images.CONFIG, steps=5)
CLASSIFIER = Classifier(TinyClassifier())
KEY = jax.random.key(3)


def draw(scale=3.0):
    rng = np.random.default_rng(0)
    return scale * rng.normal(size=(50, 7)).astype(np.float32), rng.integers(7, size=50)


def test_difficulty_against_torch():
    logits, labels = draw()
    expected = 1 - torch.softmax(torch.tensor(logits), -1)[torch.arange(50), torch.tensor(labels)]
    found = difficulty(logits, labels)
    assert found.shape == (50,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_difficulty_is_what_the_other_classes_have():
    logits, labels = draw(scale=1.0)
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    probabilities[np.arange(50), labels] = 0
    np.testing.assert_allclose(difficulty(logits, labels), probabilities.sum(-1), atol=1e-6)


def test_extreme_logits_stay_in_the_unit_interval():
    logits = np.array([[1e4, 0.0], [1e4, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(difficulty(logits, np.array([0, 1, 0])), [0, 1, 0.5])


def test_easy_and_hard_images_are_drawn_equally_often():
    rng = np.random.default_rng(0)
    difficulties = np.concatenate([rng.uniform(0.1, 0.2, 900), rng.uniform(0.8, 0.9, 60), np.full(40, 1.0)])
    chosen = balanced_resample(difficulties, 30_000, np.random.default_rng(1))
    shares = np.histogram(difficulties[chosen], [0, 0.5, 0.95, 1])[0] / 30_000
    np.testing.assert_allclose(shares, np.full(3, 1 / 3), atol=0.02)
    # Within a part all are as likely.
    counts = np.bincount(chosen[difficulties[chosen] == 1.0], minlength=1000)[-40:]
    assert counts.min() > 150 and counts.max() < 350


@pytest.fixture(scope="module")
def toy():
    """Shots, and a pool of the classes in turn whose last turn is not whole."""
    labels = np.arange(22) % NUM_CLASSES
    return draw_set(3, seed=0)[0], labelled(draw_images(labels, seed=1), labels, NUM_CLASSES)


def measure(toy, num_folds, config=CONFIG, loop=None):
    folds = cross_fit_folds(np.asarray(toy[0].labels), num_folds, 0)
    return cross_fitted_difficulty(CLASSIFIER, config, *toy, folds, KEY, loop or TrainingLoop())


def images_of(examples):
    return {np.asarray(image).tobytes() for image in examples}


@pytest.mark.parametrize("num_folds", [2, 3])
def test_no_image_is_measured_by_a_classifier_that_was_trained_on_it(toy, num_folds, monkeypatch):
    trained, measured = [], []

    def train(classifier, config, real, synthetic, key, loop):
        trained.append(images_of(real.inputs) | images_of(synthetic.inputs))
        return len(trained) - 1

    def predict(classifier, number, images, batch_size):
        measured.append((number, images_of(images)))
        return np.zeros((len(images), NUM_CLASSES), np.float32)

    monkeypatch.setattr("utilgen_jax.classifier.side_by_side.train_classifier", train)
    monkeypatch.setattr("utilgen_jax.valuation.difficulty.predict_logits", predict)
    measure(toy, num_folds)
    everything = images_of(toy[0].inputs) | images_of(toy[1].inputs)
    assert len(trained) == num_folds and len(everything) == 12 + 22
    seen = [image for _, images in measured for image in images]
    assert len(seen) == len(everything) and set(seen) == everything
    for number, images in measured:
        assert not images & trained[number]
    # A classifier trains on all that it does not measure.
    for number, images in enumerate(trained):
        assert images == everything - set().union(*(part for fold, part in measured if fold == number))


@pytest.mark.slow
def test_cross_fitted_difficulties_by_hand(toy):
    real, pool = toy
    folds = cross_fit_folds(np.asarray(real.labels), 2, 0)
    # Whole turns of the classes go to a fold.
    fold_of_pool = np.repeat([0, 1, 0, 1, 0, 1], NUM_CLASSES)[:22]
    expected_real, expected_pool = np.zeros(12), np.zeros(22)
    for number, fold in enumerate(folds):
        others = pool.take(np.flatnonzero(fold_of_pool != number))
        params = train_classifier(CLASSIFIER, CONFIG, real.take(fold.train_indices), others, KEY, TrainingLoop())
        for part, expected, chosen in (
            (real, expected_real, fold.validation_indices),
            (pool, expected_pool, np.flatnonzero(fold_of_pool == number)),
        ):
            probabilities = softmax(predict_logits(CLASSIFIER, params, part.inputs[chosen], 100), axis=-1)
            expected[chosen] = [
                1 - row[label] for row, label in zip(probabilities, np.asarray(part.labels)[chosen], strict=True)
            ]
    found = measure(toy, 2)
    assert [part.dtype for part in found] == [np.float32] * 2
    np.testing.assert_allclose(found[0], expected_real, atol=1e-6)
    np.testing.assert_allclose(found[1], expected_pool, atol=1e-6)
    assert np.ptp(found[0]) > 0.01 and np.ptp(found[1]) > 0.01


def test_steps_are_counted_over_the_folds(toy):
    seen = []
    measure(toy, 2, dataclasses.replace(CONFIG, steps=2), TrainingLoop(lambda step, loss: seen.append(step)))
    assert seen == [1, 2, 3, 4]
