import dataclasses

import jax
import numpy as np
import optax
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests import toy_images
from tests.cut_off import assert_goes_on
from tests.toy_images import NUM_CLASSES, VALUATION, TinyClassifier, draw_images, draw_set
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import predict_logits, train_classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.models.weight_net import WeightNet
from utilgen_jax.runtime import sharding
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.cross_fit import (
    PoolValues,
    _Program,
    _utilities,
    agreement,
    cross_fit,
    make_weighting,
    predict_weights,
)

# So many steps are never done: valuation has its own numbers.
CONFIG = dataclasses.replace(toy_images.CONFIG, steps=10**6, synthetic_fraction=0.75)
# A weighting that stays as it was drawn.
FIXED = dataclasses.replace(VALUATION, learning_rate=0.0)


def value(
    real,
    pool,
    folds=None,
    seed=0,
    config=CONFIG,
    valuation=VALUATION,
    loop=None,
    weighting="loss_network",
):
    folds = cross_fit_folds(real.labels, 2, 0) if folds is None else folds
    settings = config, valuation, weighting
    return cross_fit(
        Classifier(TinyClassifier()), *settings, real, pool, folds, jax.random.key(seed), loop or TrainingLoop()
    )


@pytest.fixture(scope="module", autouse=True)
def weights_that_agree():
    """After a few steps weights agree by chance alone with what images do, and they are wanted whatever they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utilgen_jax.valuation.cross_fit.agreement", lambda weights, utilities: 1.0)
        yield


@pytest.fixture(scope="module")
def toy():
    return draw_set(4, seed=0)[0], draw_set(6, seed=1)[0]


@pytest.fixture(scope="module")
def valued(toy):
    """The toy pool's value, and what each step reported."""
    seen = []
    return value(*toy, loop=TrainingLoop(lambda step, loss, **scalars: seen.append((step, float(loss), scalars)))), seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_labels_get_low_weights(seed):
    real, _ = draw_set(6, seed=10 + seed)
    pool, is_wrong = draw_set(40, seed=20 + seed, wrong=0.5)
    config = dataclasses.replace(CONFIG, batch_size=32, learning_rate=0.02)
    valuation = dataclasses.replace(VALUATION, plain_steps=200, synthetic_fraction=0.2, steps=200)
    valuation = dataclasses.replace(valuation, hidden=100, learning_rate=3e-3)
    result = value(real, pool, seed=seed, config=config, valuation=valuation)
    assert roc_auc_score(~is_wrong, result.weights) > 0.9
    # A network that has learnt nothing may fall with the loss too, but hardly.
    assert result.weights[~is_wrong].mean() > result.weights[is_wrong].mean() + 0.15


def test_steps_are_counted_over_the_folds_plain_ones_first(valued):
    assert [step for step, _, _ in valued[1]] == list(range(1, VALUATION.total_steps(CONFIG, num_folds=2) + 1))
    bilevel = [bool(scalars) for _, _, scalars in valued[1]]
    assert bilevel == 2 * VALUATION.plain_steps * [False] + 2 * VALUATION.steps * [True]
    for _, loss, scalars in valued[1]:
        assert np.isfinite(loss) and (not scalars or np.isfinite(scalars["validation_loss"]))


@pytest.mark.slow
def test_weights_and_losses_are_means_over_the_folds(toy, monkeypatch):
    logits = []

    def spy(*arguments):
        logits.append(predict_logits(*arguments))
        return logits[-1]

    monkeypatch.setattr("utilgen_jax.valuation.cross_fit.predict_logits", spy)
    real, pool = toy
    result = value(real, pool, valuation=FIXED)
    for array in (result.weights, result.losses):
        assert array.shape == (24,) and array.dtype == np.float32
    assert result.weights.min() >= 0 and result.weights.max() <= 1

    labels = torch.tensor(np.asarray(pool.labels)).long()
    losses = [
        torch.nn.functional.cross_entropy(
            torch.tensor(fold_logits),
            labels,
            reduction="none",
            label_smoothing=0.1,
        ).numpy()
        for fold_logits in logits
    ]
    assert len(losses) == 2 and np.abs(losses[0] - losses[1]).max() > 1e-3
    np.testing.assert_allclose(result.losses, np.mean(losses, 0), rtol=1e-5)
    net = WeightNet(10)  # one for all folds
    variables = jax.jit(net.init)(jax.random.fold_in(jax.random.key(0), 1), np.zeros((1, 1)))
    weights = [net.apply(variables, fold_losses[:, None]) for fold_losses in losses]
    np.testing.assert_allclose(result.weights, np.mean(weights, 0), rtol=1e-5)


@pytest.mark.slow
def test_validation_images_teach_the_weighting_but_never_the_classifier(toy):
    real, pool = toy
    (fold, _) = cross_fit_folds(real.labels, 2, 0)
    others = real.inputs.copy()
    classes = (np.asarray(real.labels)[fold.validation_indices] + 1) % NUM_CLASSES
    others[fold.validation_indices] = draw_images(classes, seed=5)
    changed = dataclasses.replace(real, inputs=others)
    fixed, fixed_changed = (value(shots, pool, [fold], valuation=FIXED) for shots in (real, changed))
    np.testing.assert_array_equal(fixed.losses, fixed_changed.losses)
    np.testing.assert_array_equal(fixed.weights, fixed_changed.weights)
    learnt, learnt_changed = (value(shots, pool, [fold]) for shots in (real, changed))
    assert np.abs(learnt.weights - learnt_changed.weights).max() > 1e-4


@pytest.mark.slow
def test_only_the_key_decides(toy, valued):
    again, other = value(*toy), value(*toy, seed=1)
    np.testing.assert_array_equal(valued[0].weights, again.weights)
    np.testing.assert_array_equal(valued[0].losses, again.losses)
    assert np.abs(valued[0].weights - other.weights).max() > 1e-3


def test_weights_that_the_pool_had_are_not_read(toy, valued):
    real, pool = toy
    heavy = dataclasses.replace(pool, weights=7 * pool.weights)
    np.testing.assert_array_equal(value(real, heavy).weights, valued[0].weights)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 100])
def test_validation_may_be_drawn_in_batches(toy, valued, size):
    result = value(*toy, valuation=dataclasses.replace(VALUATION, validation_batch_size=size))
    assert np.isfinite(result.weights).all() and np.abs(result.weights - valued[0].weights).max() > 0


@pytest.mark.slow
def test_a_fold_starts_from_a_classifier_of_its_shots_and_the_pool(toy):
    real, pool = toy
    folds = cross_fit_folds(real.labels, 2, 0)
    # Steps so small that nothing moves.
    valuation = dataclasses.replace(FIXED, plain_steps=7, steps=1, inner_learning_rate=1e-8)
    result = value(real, pool, folds, valuation=valuation)
    config, key = dataclasses.replace(CONFIG, steps=7), jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1)
    train = real.take(folds[1].train_indices)
    expected = train_classifier(Classifier(TinyClassifier()), config, train, pool, key, TrainingLoop())
    jax.tree.map(
        lambda found, kernel: np.testing.assert_allclose(found[1], kernel, atol=1e-5),
        result.fold_models["classifier"],
        expected,
    )


def test_agreement_is_the_mean_correlation_of_a_fold():
    rng = np.random.default_rng(0)
    weights, utilities = rng.random((3, 20)), rng.normal(size=(3, 20))
    expected = np.mean([np.corrcoef(*fold)[0, 1] for fold in zip(weights, utilities, strict=True)])
    np.testing.assert_allclose(agreement(weights, utilities), expected)
    assert agreement(np.ones((3, 20)), utilities) == 0


def test_weights_that_contradict_what_images_do_are_not_used(toy, valued, monkeypatch):
    monkeypatch.setattr("utilgen_jax.valuation.cross_fit.agreement", lambda weights, utilities: -0.1)
    result = value(*toy)
    assert result.contradictory and (result.weights == 1).all()
    assert not valued[0].contradictory and np.ptp(valued[0].weights) > 0


def test_weights_that_rise_with_the_loss_need_clear_agreement():
    values = PoolValues(np.ones(3), agreement=0.1, rise=0.3)
    assert values.contradictory and not dataclasses.replace(values, agreement=0.3).contradictory
    assert not dataclasses.replace(values, rise=-0.3).contradictory


@pytest.mark.slow
def test_what_an_image_does_is_how_much_a_small_step_on_it_helps(toy, monkeypatch):
    seen = []
    monkeypatch.setattr("utilgen_jax.valuation.cross_fit.agreement", lambda *given: seen.append(given) or 1.0)
    real, pool = toy
    folds = cross_fit_folds(real.labels, 2, 0)
    # Steps so small that nothing moves.
    valuation = dataclasses.replace(FIXED, plain_steps=20, steps=1, inner_learning_rate=1e-8)
    result = value(real, pool, folds, valuation=valuation)
    ((weights, utilities),) = seen
    assert weights.shape == utilities.shape == (2, len(pool))
    params = jax.tree.map(lambda leaf: leaf[1], result.fold_models["classifier"])
    smooth = lambda examples: optax.smooth_labels(examples.dense().targets, CONFIG.label_smoothing)

    def loss(params, examples, chosen):
        logits = Classifier(TinyClassifier()).apply(params, examples.inputs)
        return optax.softmax_cross_entropy(logits, smooth(examples))[chosen].mean()

    held_out = real.take(folds[1].validation_indices)
    before = loss(params, held_out, slice(None))
    for image in range(4):
        gradient = jax.grad(loss)(params, pool, slice(image, image + 1))
        after = loss(jax.tree.map(lambda leaf, step: leaf - 1e-3 * step, params, gradient), held_out, slice(None))
        np.testing.assert_allclose(1e-1 * (before - after), utilities[1, image], rtol=0.05, atol=2e-7)


@pytest.mark.parametrize("loss", ["softmax", "balanced_softmax"])
def test_no_image_is_useful_for_its_class_being_frequent_among_the_shots(toy, loss):
    """Where the loss balances classes: a classifier that knows frequencies alone learns nothing of them."""
    shots, pool = toy[0].take(np.array([0, 1, 2, 3, 4, 5, 8, 12])), toy[1].dense()
    config = dataclasses.replace(CONFIG, loss=loss, label_smoothing=0.0)
    program = _Program(config, VALUATION, make_weighting("loss_network", VALUATION, NUM_CLASSES))
    classifier = Classifier(TinyClassifier())
    params = jax.tree.map(np.zeros_like, classifier.module.init(jax.random.key(0), shots.inputs)["params"])
    counts = np.bincount(shots.labels, minlength=NUM_CLASSES)
    utilities = _utilities(classifier, program, (counts, params), pool, shots.dense())
    of_frequent, of_rare = (np.mean(utilities[pool.labels == label]) for label in (0, 3))
    assert (of_frequent > 1e-6 + of_rare) == (loss == "softmax")
    assert loss == "softmax" or np.abs(utilities).max() < 1e-9


def test_weights_count_the_same_in_every_pool_or_in_every_class():
    values, labels = PoolValues(np.array([0.1, 0.3, 0.2, 0.0, 0.0], np.float32)), np.array([0, 0, 1, 1, 2])
    np.testing.assert_allclose(values.training_weights(labels, within_classes=False), values.weights / 0.12)
    np.testing.assert_allclose(values.training_weights(labels, within_classes=True), [0.5, 1.5, 2, 0, 0], rtol=1e-6)


@pytest.mark.slow
def test_the_mesh_does_not_change_the_result(toy, valued):
    with jax.set_mesh(sharding.make_mesh()):
        found = value(*sharding.replicate(toy))
    np.testing.assert_allclose(found.weights, valued[0].weights, atol=1e-4)
    np.testing.assert_allclose(found.losses, valued[0].losses, atol=1e-4)


def test_the_fold_models_predict_the_weights_again(toy, valued):
    pool, result = toy[1], valued[0]
    targets = optax.smooth_labels(pool.dense().targets, CONFIG.label_smoothing)
    weights = predict_weights(
        Classifier(TinyClassifier()), "loss_network", VALUATION, result.fold_models, Examples(pool.inputs, targets)
    )
    np.testing.assert_allclose(weights, result.weights, rtol=1e-5)


@pytest.mark.slow
def test_a_feature_network_sees_the_attributes():
    real, _ = draw_set(6, seed=10)
    pool, is_wrong = draw_set(40, seed=20, wrong=0.5)
    pool = dataclasses.replace(pool, attributes=np.eye(2, dtype=np.float32)[is_wrong.astype(int)])
    config = dataclasses.replace(CONFIG, batch_size=32, learning_rate=0.02)
    valuation = dataclasses.replace(VALUATION, steps=100, hidden=50, learning_rate=0.005)
    result = value(real, pool, config=config, valuation=valuation, weighting="feature_network")
    assert roc_auc_score(~is_wrong, result.weights) > 0.95


@pytest.mark.parametrize("cut_after", [4, 8, 11])
def test_a_valuation_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, cut_after):
    real, pool = draw_set(4, seed=0)[0], draw_set(8, seed=1)[0]
    # Two folds: two plain steps of each, then four of each in turn that learn weights.
    assert_goes_on(lambda loop: value(real, pool, loop=loop), tmp_path, cut_after)
