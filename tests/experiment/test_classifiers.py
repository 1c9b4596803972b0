"""The classifier's steps: which config, images and key training gets, and what is measured of it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from tests.experiment.conftest import random_pool
from utilgen_jax.classifier.practice import Patience, Practised
from utilgen_jax.classifier.train import init_classifier, train_classifier
from utilgen_jax.data.images import to_float
from utilgen_jax.experiment import classifiers
from utilgen_jax.experiment.experiment import SharedDirs
from utilgen_jax.experiment.keys import Key
from utilgen_jax.methods import METHODS, Method
from utilgen_jax.pool.plan import in_rounds
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.config import SaflexConfig
from utilgen_jax.valuation.saflex import SaflexClassifier


@pytest.fixture
def trained(monkeypatch):
    """The arguments of each training, which takes no time; parameters say which training they are of."""
    calls = []

    def train(classifier, config, real, synthetic, key, loop, teachers=None):
        calls.append((classifier, config, real, synthetic, key, teachers))
        return {"layer": {"bias": np.full(2, len(calls), np.float32)}}

    monkeypatch.setattr(classifiers, "train_classifier", train)
    return calls


@pytest.mark.parametrize(
    "changes",
    [{}, {"augmentation": "randaugment"}, {"mixing": "cutmix"}, {"augmentation": "randaugment", "mixing": "none"}],
)
def test_a_method_changes_augmentation_and_mixing_alone(make_experiment, trained, changes):
    experiment = make_experiment(classifier__augmentation="none", classifier__mixing="mixup")
    synthetic = experiment.examples(random_pool(4))
    experiment.classifiers.train(Method("own", "own", **changes), synthetic)
    ((classifier, config, real, used, key, teachers),) = trained
    assert teachers is None and config == dataclasses.replace(experiment.classifier_config, **changes)
    assert classifier is experiment.classifier and real is experiment.real and used is synthetic
    assert (key == jax.random.fold_in(jax.random.key(experiment.config.seed), Key.CLASSIFIER)).all()


def test_a_config_that_augments_augments_all_methods(make_experiment, trained):
    experiment = make_experiment(classifier__augmentation="randaugment", classifier__mixing="cutmix")
    experiment.classifiers.real()
    experiment.classifiers.train(METHODS["vanilla"], experiment.examples(random_pool(4)))
    assert [(call[1].augmentation, call[1].mixing) for call in trained] == [("randaugment", "cutmix")] * 2


def test_the_classifier_that_measures_difficulty_is_the_method_reals(make_experiment, trained):
    experiment = make_experiment()
    params = experiment.classifiers.real()
    assert experiment.classifiers.real() is params
    assert experiment.classifiers.train(METHODS["real"], None) is params
    ((_, config, _, synthetic, *_),) = trained
    assert synthetic is None and config == experiment.classifier_config
    assert list(experiment.stages.seconds) == ["classifier_real"]
    # A second run reads it.
    other = make_experiment().classifiers.real()
    assert len(trained) == 1
    np.testing.assert_array_equal(other["layer"]["bias"], params["layer"]["bias"])


@pytest.mark.parametrize(("fraction", "of_the_method"), [(0.0, 0.6), (0.3, 0.3), (1.0, 1.0)])
def test_what_a_classifier_is_trained_on_changes_its_batches_alone(make_experiment, trained, fraction, of_the_method):
    experiment = make_experiment(classifier__synthetic_fraction=fraction)
    synthetic = experiment.examples(random_pool(4))
    method = Method("own", "own", mixing="cutmix")
    experiment.classifiers.train(method, synthetic)
    experiment.classifiers.train_on_synthetic(method, synthetic)
    experiment.classifiers.real()
    (_, own, *_), (_, only, *_), (_, real, *_) = trained
    assert own.synthetic_fraction == pytest.approx(of_the_method)
    assert only == dataclasses.replace(own, synthetic_fraction=1.0) and only.num_synthetic == only.batch_size
    # What methods train with, their ensembles for instance, sees the shots whatever the final classifier sees.
    assert real == experiment.classifier_config and real.num_synthetic < real.batch_size
    assert [call[3] is synthetic for call in trained] == [True, True, False]
    assert all((call[4] == trained[0][4]).all() for call in trained)
    names = ["classifier_own", "classifier_own_synthetic_only", "classifier_real"]
    assert list(experiment.stages.seconds) == names


def test_teachers_are_handed_to_both_classifiers(make_experiment, trained):
    experiment = make_experiment()
    synthetic, teachers = experiment.examples(random_pool(4)), {"layer": {"bias": np.ones((3, 2), np.float32)}}
    for train in (experiment.classifiers.train, experiment.classifiers.train_on_synthetic):
        train(METHODS["joint"], synthetic, teachers)
    assert len(trained) == 2
    for *_, given in trained:
        np.testing.assert_array_equal(given["layer"]["bias"], teachers["layer"]["bias"])


def test_runs_with_pools_of_several_sizes_share_the_classifier_of_the_real_images(make_experiment, trained, tmp_path):
    for size in ("small", "large"):
        folder = tmp_path / size
        shared = SharedDirs(folder / "stages", folder / "pools", folder / "shotless", tmp_path / "real")
        classifiers_ = make_experiment(workdir=folder, shared=shared).classifiers
        classifiers_.real()
        classifiers_.train(METHODS["vanilla"], None)
    assert len(trained) == 3
    assert [file.name for file in (tmp_path / "real").glob("*.safetensors")] == ["classifier_real.safetensors"]


@pytest.mark.slow
def test_training_is_the_librarys(make_experiment):
    experiment = make_experiment()
    synthetic = experiment.examples(random_pool(6))
    params = experiment.classifiers.train(METHODS["vanilla"], synthetic)
    key = jax.random.fold_in(jax.random.key(0), 1)
    expected = train_classifier(
        experiment.classifier, experiment.classifier_config, experiment.real, synthetic, key, TrainingLoop()
    )
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, expected))


def test_saflex_trains_with_the_experiments_shots_folds_and_settings(make_experiment, monkeypatch):
    experiment = make_experiment("saflex", saflex__memory=0.25, classifier__mixing="cutmix")
    calls, synthetic = [], experiment.examples(random_pool(6))

    def train(classifier, program, shots, pool, key, loop):
        calls.append((classifier, program, shots, pool, key))
        found = np.linspace(0, 1, 6, dtype=np.float32)
        return SaflexClassifier({"layer": {"bias": np.ones(2, np.float32)}}, found, np.stack([found, 1 - found], 1))

    monkeypatch.setattr(classifiers, "train_saflex", train)
    for run in (experiment, make_experiment("saflex", saflex__memory=0.25, classifier__mixing="cutmix")):
        trained = run.classifiers.train_saflex(METHODS["saflex"], synthetic)
        assert isinstance(trained, SaflexClassifier)
        np.testing.assert_array_equal(trained.params["layer"]["bias"], np.ones(2))
        np.testing.assert_allclose(trained.soft_labels[:, 0], trained.weights)
    ((classifier, program, (real, folds), pool, key),) = calls  # the second run reads it
    assert classifier is experiment.classifier and pool is synthetic
    assert real is experiment.real and folds is experiment.folds and len(folds) == 2
    assert program.config == experiment.classifier_config and program.config.mixing == "cutmix"
    assert program.saflex == experiment.config.section(SaflexConfig) and program.saflex.memory == 0.25
    assert (key == experiment.key(Key.CLASSIFIER)).all()
    assert list(experiment.stages.seconds) == ["classifier_saflex"]


def test_a_classifier_practises_on_the_first_folds_other_shots(make_experiment, monkeypatch):
    calls, start = [], {"layer": {"bias": np.zeros(2, np.float32)}}

    def train(classifier, config, patience, examples, params, key, loop):
        calls.append((config, patience, examples, params, key))
        return Practised({"layer": {"bias": np.ones(2, np.float32)}}, np.array([0.5, 0.75], np.float32))

    monkeypatch.setattr(classifiers, "train_until_stall", train)
    pool = random_pool(4)
    pool = dataclasses.replace(pool, pool=dataclasses.replace(pool.pool, records=in_rounds(pool.records, [0.5, 1])[1]))
    for run in (experiment := make_experiment("deliberate_practice"), make_experiment("deliberate_practice")):
        practised = run.classifiers.practise(pool, start, 5, 3)
        np.testing.assert_array_equal(practised.params["layer"]["bias"], 1)
        np.testing.assert_array_equal(practised.accuracies, [0.5, 0.75])
    ((config, patience, (real, synthetic, held_out), params, key),) = calls  # the second run reads it
    assert config == experiment.classifier_config and patience == Patience(5, 3) and params is start
    fold = experiment.folds[0]
    for part, places in ((real, fold.train_indices), (held_out, fold.validation_indices)):
        np.testing.assert_array_equal(part.inputs, experiment.real.inputs[places])
    np.testing.assert_array_equal(synthetic.labels, pool.labels)
    assert (key == jax.random.fold_in(experiment.key(Key.PRACTICE), 1)).all()
    assert list(experiment.stages.seconds) == ["practice_plain_1"]


def drawn_params(experiment):
    return init_classifier(experiment.classifier, experiment.real.inputs.shape[1:], jax.random.key(3))


def test_accuracy_is_the_part_of_the_test_images_with_the_right_largest_logit(make_experiment):
    experiment = make_experiment(data__max_classes=5, data__max_test=50, classifier__eval_batch_size=20)
    params, test = drawn_params(experiment), experiment.split.test
    logits = np.asarray(experiment.classifier.apply(params, to_float(test.images)))
    right = [row.argmax() == label for row, label in zip(logits, test.labels, strict=True)]
    assert 0 < sum(right) < 50
    tested = experiment.classifiers.evaluate(METHODS["vanilla"], params)
    assert tested.accuracy == pytest.approx(sum(right) / 50)
    assert tested.predicted.tolist() == logits.argmax(-1).tolist()
    assert list(experiment.stages.seconds) == ["evaluation_vanilla"]


def test_difficulty_is_what_the_classifier_of_the_real_images_leaves_of_certainty(make_experiment, monkeypatch):
    experiment = make_experiment()
    params = drawn_params(experiment)
    monkeypatch.setattr(classifiers, "train_classifier", lambda *arguments: params)
    pool = random_pool(6)
    for examples, labels, measured in (
        (experiment.real, experiment.split.real.labels, experiment.classifiers.real_difficulty()),
        (
            experiment.examples(pool),
            pool.labels,
            experiment.classifiers.difficulty(experiment.examples(pool), pool.labels),
        ),
    ):
        logits = np.asarray(experiment.classifier.apply(params, examples.inputs))
        expected = [1 - scipy.special.softmax(row)[label] for row, label in zip(logits, labels, strict=True)]
        np.testing.assert_allclose(measured, expected, rtol=1e-4)
        assert np.std(expected) > 1e-3
    assert set(experiment.stages.seconds) == {"classifier_real", "difficulty"}


def test_cross_fitted_difficulty_takes_the_experiments_folds(make_experiment, monkeypatch):
    experiment = make_experiment("difficulty")
    calls, pool = [], random_pool(6)

    def measure(classifier, config, real, synthetic, folds, key, loop):
        calls.append((classifier, config, real, folds, key))
        return np.full(len(real), 0.25, np.float32), np.linspace(0, 1, len(synthetic), dtype=np.float32)

    monkeypatch.setattr(classifiers, "cross_fitted_difficulty", measure)
    for run in (experiment, make_experiment("difficulty")):
        of_shots, of_pool = run.classifiers.cross_fitted_difficulty(pool)
        np.testing.assert_array_equal(of_shots, [0.25] * 4)
        np.testing.assert_allclose(of_pool, np.arange(6) / 5, rtol=1e-6)
    ((classifier, config, real, folds, key),) = calls
    assert classifier is experiment.classifier and config is experiment.classifier_config and real is experiment.real
    assert folds is experiment.folds and len(folds) == 2
    assert (key == experiment.key(Key.CLASSIFIER)).all()
