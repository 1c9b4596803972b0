import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.toy_images import CONFIG, NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import (
    TrainingSet,
    apply_randaugment,
    balance_logits,
    draw_batch,
    init_classifier,
    make_optimizer,
    predict_logits,
    random_shift,
    smoothed_cross_entropy,
    train_classifier,
)
from utilgen_jax.models.classifiers import SmallCNN
from utilgen_jax.runtime import sharding

draw = jax.jit(draw_batch, static_argnums=0)


def train(real, synthetic=None, seed=0, module=None, on_step=lambda step, loss: None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train_classifier(
        Classifier(module or TinyClassifier()), config, real, synthetic, jax.random.key(seed), on_step
    )


def accuracy(params, images, module=None):
    logits = predict_logits(Classifier(module or TinyClassifier()), params, images.images, 50)
    return (logits.argmax(-1) == images.labels).mean()


def assert_equal(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0})), first, second)


def largest_difference(first, second):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), first, second)
    return max(jax.tree.leaves(differences))


def numbered(start, count):
    """Images of one grey each, by which they can be told apart after any shift; labels and weights tell the same."""
    numbers = np.arange(start, start + count)
    images = np.broadcast_to(numbers[:, None, None, None] / 100, (count, 8, 8, 1)).astype(np.float32)
    return TrainingSet(jnp.array(images), jnp.array(numbers, jnp.int32), jnp.array(numbers, jnp.float32))


@pytest.mark.parametrize(
    ("batch_size", "fraction", "expected"),
    [(64, 0.5, 32), (64, 0.25, 16), (64, 0.001, 1), (64, 0.999, 63), (2, 0.9, 1), (64, 1.0, 64)],
)
def test_a_mixed_batch_has_both_kinds_unless_only_one_is_wanted(batch_size, fraction, expected):
    config = dataclasses.replace(CONFIG, batch_size=batch_size, synthetic_fraction=fraction, max_shift=0)
    assert config.num_synthetic == expected
    batch = draw(config, numbered(0, 5), numbered(50, 7), jax.random.key(0))
    is_synthetic = np.asarray(batch.labels) >= 50
    np.testing.assert_array_equal(is_synthetic, np.arange(batch_size) >= batch_size - expected)


def test_batches_keep_images_labels_and_weights_together():
    draws = [draw(CONFIG, numbered(0, 3), numbered(50, 7), jax.random.key(seed)) for seed in range(20)]
    for batch in draws:
        assert batch.images.shape == (16, 8, 8, 1) and batch.labels.dtype == jnp.int32
        np.testing.assert_array_equal(batch.labels, batch.weights)
        expected = np.broadcast_to(np.asarray(batch.labels)[:, None, None, None] / 100, batch.images.shape)
        np.testing.assert_allclose(batch.images, expected, rtol=1e-6)
    # With replacement and evenly: three shots fill the real half, each with about a third of it.
    counts = np.bincount(np.concatenate([batch.labels for batch in draws]), minlength=57)
    assert counts[:3].sum() == counts[50:].sum() == 160
    assert counts[:3].min() > 30 and counts[50:].min() > 8


def test_soft_labels_take_the_place_of_labels_also_beside_images_without():
    soft = jnp.eye(60)[jnp.array([3, 4])] * 0.5 + 1 / 120
    synthetic = numbered(50, 2).replace(soft_labels=soft)
    assert numbered(0, 3).soft_labels is None
    batch = draw(CONFIG, numbered(0, 3), synthetic, jax.random.key(0))
    numbers = np.asarray(batch.labels)
    expected = np.where(numbers[:, None] < 50, np.eye(60)[numbers % 50], np.asarray(soft)[numbers % 50 % 2])
    np.testing.assert_array_equal(batch.targets(60), expected.astype(np.float32))
    np.testing.assert_array_equal(draw(CONFIG, numbered(0, 3), None, jax.random.key(0)).targets(3).sum(-1), 1)


def test_batches_depend_on_the_key_alone():
    real, synthetic = numbered(0, 30), numbered(50, 30)
    first, again, other = (draw(CONFIG, real, synthetic, jax.random.key(seed)) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert (first.labels != other.labels).any()
    only_real = draw(CONFIG, real, None, jax.random.key(1))
    assert only_real.labels.shape == (16,) and only_real.labels.max() < 30


@pytest.mark.parametrize("max_shift", [1, 2])
def test_random_shift_against_numpy(max_shift):
    images = np.random.default_rng(0).normal(size=(500, 5, 6, 2)).astype(np.float32)
    shifted = np.asarray(random_shift(jnp.array(images), jax.random.key(3), max_shift))
    padded = np.pad(images, ((0, 0), (max_shift,) * 2, (max_shift,) * 2, (0, 0)), mode="edge")
    span = range(2 * max_shift + 1)
    crops = {(row, column): padded[:, row : row + 5, column : column + 6] for row in span for column in span}
    matches = {offset: (crop == shifted).all((1, 2, 3)) for offset, crop in crops.items()}
    # Each image has moved by exactly one of the offsets, and all offsets are about as frequent.
    np.testing.assert_array_equal(sum(match.astype(int) for match in matches.values()), 1)
    expected = 500 / len(crops)
    assert all(abs(match.sum() - expected) < 5 * expected**0.5 for match in matches.values())


def test_no_shift_changes_nothing():
    images = jnp.array(np.random.default_rng(0).normal(size=(3, 5, 5, 1)))
    np.testing.assert_array_equal(random_shift(images, jax.random.key(0), 0), images)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2, 0.9])
def test_smoothed_cross_entropy_is_torchs(label_smoothing):
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.normal(size=(20, 7)).astype(np.float32), rng.integers(7, size=20)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none", label_smoothing=label_smoothing
    )
    found = smoothed_cross_entropy(logits, np.eye(7)[labels], label_smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_smoothing_leaves_the_weight_of_a_target():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 4)).astype(np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    weights = np.array([0.0, 0.5, 1.0, 2.0, 3.0], np.float32)
    losses = smoothed_cross_entropy(logits, targets, 0.2)
    np.testing.assert_allclose(
        smoothed_cross_entropy(logits, weights[:, None] * targets, 0.2), weights * losses, rtol=1e-5
    )


def test_balanced_softmax_is_the_cross_entropy_of_counted_probabilities():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels, seen = np.array([0, 1, 2, 2, 0]), np.array([0] * 20 + [1] * 4 + [2])
    counted = np.array([20, 4, 1]) * np.exp(logits)
    expected = -np.log(counted / counted.sum(axis=1, keepdims=True))[np.arange(5), labels]
    found = smoothed_cross_entropy(balance_logits(jnp.asarray(logits), jnp.asarray(seen)), np.eye(3)[labels], 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_rare_classes_are_found_again_with_balanced_softmax():
    images, _ = draw_set(40, seed=0, noise=0.8)
    test, _ = draw_set(100, seed=2, noise=0.8)
    rare = np.asarray(images.labels) == 3
    chosen = np.concatenate([np.flatnonzero(~rare), np.flatnonzero(rare)[:3]])
    recalls = {}
    for loss in ("softmax", "balanced_softmax"):
        logits = predict_logits(Classifier(TinyClassifier()), train(images.take(chosen), loss=loss), test.images, 50)
        recalls[loss] = (logits.argmax(-1) == 3)[test.labels == 3].mean()
    assert recalls["balanced_softmax"] > recalls["softmax"] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_images_teach_too_and_weight_zero_stays_without_influence(mixing):
    real, _ = draw_set(20, seed=0)
    test, _ = draw_set(50, seed=2)
    params = train(real, mixing=mixing, steps=100)
    assert accuracy(params, test) > 0.9
    assert largest_difference(params, train(real, steps=100)) > 0.01

    first, other = (
        dataclasses.replace(draw_set(10, seed=1)[0], labels=np.full(40, label, np.int32)) for label in (0, 1)
    )
    zero = np.zeros(40, np.float32)
    losses = [[], []]
    for heard, synthetic in zip(losses, (first, other), strict=True):
        weighted = dataclasses.replace(synthetic, weights=zero)
        train(real, weighted, mixing=mixing, steps=3, on_step=lambda step, loss, heard=heard: heard.append(float(loss)))
    assert losses[0] == losses[1]


def test_randaugment_changes_images_by_the_key_and_nothing_else():
    batch = sharding.replicate(draw_set(10, seed=0)[0])
    augmented, again, other = (apply_randaugment(batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(augmented.images, again.images)
    # Of 14 operations, some leave an image as it is: none of two in a row does so to most.
    changed = (np.abs(augmented.images - batch.images) > 1 / 127).any((1, 2, 3))
    assert changed.mean() > 0.7 and (augmented.images != other.images).any()
    assert augmented.images.dtype == jnp.float32 and np.abs(augmented.images).max() <= 1
    np.testing.assert_array_equal(augmented.labels, batch.labels)
    np.testing.assert_array_equal(augmented.weights, batch.weights)


def test_randaugment_reaches_real_and_synthetic_images_and_draws_anew_each_step(monkeypatch):
    seen = []

    def spy(images, rng):
        seen.append((images.copy(), rng.integers(2**31)))
        return 255 - images

    monkeypatch.setattr("utilgen_jax.classifier.train.randaugment", spy)
    dark, bright = (
        TrainingSet(np.full((4, 8, 8, 1), grey, np.float32), np.arange(4), np.ones(4, np.float32)) for grey in (-1, 0.5)
    )
    train(dark, bright, steps=2, augmentation="randaugment")
    assert [images.dtype for images, _ in seen] == [np.uint8] * 2 and seen[0][1] != seen[1][1]
    for images, _ in seen:
        assert images.shape == (16, 8, 8, 1) and (images[:8] == 0).all() and (images[8:] == 191).all()


@pytest.mark.slow
def test_training_with_randaugment_depends_on_the_key_alone_and_not_on_the_mesh():
    real, synthetic = draw_set(4, seed=0)[0], draw_set(10, seed=1)[0]
    trained, again = (train(real, synthetic, steps=5, augmentation="randaugment") for _ in range(2))
    assert largest_difference(trained, again) == 0
    assert largest_difference(trained, train(real, synthetic, steps=5)) > 0.01
    with jax.set_mesh(sharding.make_mesh(2, 4)):
        found = train(*sharding.replicate((real, synthetic)), steps=5, augmentation="randaugment")
    assert_equal(found, trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_the_learning_rate_warms_up_and_decays_to_zero(steps):
    # Where all gradients are 1, Adam's direction is 1: the update is -rate (1 + decay · parameter).
    config = dataclasses.replace(CONFIG, steps=steps, weight_decay=0.5)
    optimizer = make_optimizer(config)
    params = {"x": jnp.array(2.0)}
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(steps):
        updates, state = update({"x": jnp.array(1.0)}, state, params)
        found.append(-float(updates["x"]) / (1 + 0.5 * 2.0))
    warmup = max(steps // 20, 1)
    step = np.arange(steps)
    decay = (1 + np.cos(np.pi * (step - warmup) / max(steps - warmup, 1))) / 2
    np.testing.assert_allclose(found, 1e-2 * np.where(step < warmup, step / warmup, decay), rtol=1e-4, atol=1e-8)


def test_the_loss_is_the_weighted_mean_of_the_batch():
    real, _ = draw_set(2, seed=0)
    synthetic, _ = draw_set(5, seed=1)
    synthetic = dataclasses.replace(synthetic, weights=np.linspace(0, 2, 20, dtype=np.float32))
    seen = []
    train(real, synthetic, seed=4, steps=3, on_step=lambda step, loss: seen.append((step, float(loss))))
    assert [step for step, _ in seen] == [1, 2, 3]

    key = jax.random.key(4)
    module = TinyClassifier()
    params = init_classifier(Classifier(module), (8, 8, 1), jax.random.fold_in(key, 0))
    batch = draw(
        dataclasses.replace(CONFIG, steps=3),
        real,
        synthetic,
        jax.random.fold_in(jax.random.fold_in(key, 1), 0),
    )
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(np.array(module.apply({"params": params}, batch.images))),
        torch.tensor(np.array(batch.labels, np.int64)),
        reduction="none",
        label_smoothing=0.1,
    )
    np.testing.assert_allclose(seen[0][1], (losses.numpy() * np.asarray(batch.weights)).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(SmallCNN(num_classes=NUM_CLASSES, width=8), id="small_cnn", marks=pytest.mark.slow),
        pytest.param(TinyClassifier(), id="tiny"),
    ],
)
def test_it_learns_an_easy_problem(module):
    real, _ = draw_set(4, seed=0)
    test, _ = draw_set(50, seed=2)
    losses = []
    params = train(real, module=module, on_step=lambda step, loss: losses.append(float(loss)))
    assert accuracy(params, test, module) > 0.95
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_samples_of_weight_zero_have_no_influence_at_all():
    real, _ = draw_set(2, seed=0)
    synthetic, _ = draw_set(20, seed=1)
    is_wrong = np.arange(80) % 4 < 3
    synthetic = dataclasses.replace(synthetic, labels=np.where(is_wrong, (synthetic.labels + 1) % 4, synthetic.labels))
    test, _ = draw_set(50, seed=2)
    weights = np.where(is_wrong, 0.0, 1 / (1 - is_wrong.mean())).astype(np.float32)
    weighted = train(real, dataclasses.replace(synthetic, weights=weights))

    # To the last bit: what such a sample shows, and what its label says, does not matter.
    rng = np.random.default_rng(0)
    images = np.where(is_wrong[:, None, None, None], rng.uniform(-1, 1, synthetic.images.shape), synthetic.images)
    labels = np.where(is_wrong, rng.integers(NUM_CLASSES, size=len(is_wrong)), synthetic.labels)
    others = TrainingSet(images.astype(np.float32), labels.astype(np.int32), weights)
    assert largest_difference(weighted, train(real, others)) == 0

    # With full weight they matter, and mislead.
    misled = train(real, synthetic)
    assert largest_difference(weighted, misled) > 0.01
    assert accuracy(weighted, test) > accuracy(misled, test) + 0.05


def test_only_the_key_decides_the_parameters():
    real, _ = draw_set(4, seed=0)
    synthetic, _ = draw_set(10, seed=1)
    first = train(real, synthetic, steps=5)
    assert largest_difference(first, train(real, synthetic, steps=5)) == 0
    assert largest_difference(first, train(real, synthetic, steps=5, seed=1)) > 0.01


def test_rows_of_a_comparison_share_their_compilations():
    traces = []

    class Counted(TinyClassifier):
        def __call__(self, images):
            traces.append(None)
            return super().__call__(images)

    module = Counted()
    real, _ = draw_set(4, seed=0)
    synthetic, _ = draw_set(10, seed=1)
    train(real, synthetic, module=module, steps=3)
    first = len(traces)
    train(real, dataclasses.replace(synthetic, weights=2 * synthetic.weights), seed=1, module=module, steps=3)
    assert len(traces) == first > 0


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(8, 1), (2, 4)])
def test_the_mesh_does_not_change_the_result(axes):
    # The second time the 16 images of a step are 2 on each of 8 devices.
    real, _ = draw_set(4, seed=0)
    synthetic, _ = draw_set(10, seed=1)
    expected = train(real, synthetic, steps=10)
    with jax.set_mesh(sharding.make_mesh(*axes)):
        found = train(*sharding.replicate((real, synthetic)), steps=10)
        logits = predict_logits(Classifier(TinyClassifier()), found, real.images, 5)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found))
    assert_equal(found, expected, rtol=1e-4, atol=1e-5)
    expected_logits = predict_logits(Classifier(TinyClassifier()), expected, real.images, 16)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 500])
def test_logits_do_not_depend_on_the_batches(batch_size):
    module = TinyClassifier()
    params = init_classifier(Classifier(module), (8, 8, 1), jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (10, 8, 8, 1)).astype(np.float32)
    expected = module.apply({"params": params}, images)
    for given in (images, jnp.array(images)):
        logits = predict_logits(Classifier(module), jax.tree.map(np.asarray, params), given, batch_size)
        assert logits.shape == (10, NUM_CLASSES) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def losses_of_the_small_cnn() -> list[float]:
    losses: list[float] = []
    with jax.set_mesh(sharding.make_mesh(8, 1)):
        real = sharding.replicate(draw_set(30, seed=0)[0])
        train(
            real, module=SmallCNN(10, 8), steps=6, batch_size=64, on_step=lambda step, loss: losses.append(float(loss))
        )
    return losses


@pytest.mark.slow
def test_training_stays_finite_where_xla_computes_a_pooled_activation_twice():
    # It does with its fusion emitters, without which the tests run (see `conftest`): hence another process.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    script = f"from {__name__} import losses_of_the_small_cnn; print(losses_of_the_small_cnn())"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    losses = [float(loss) for loss in result.stdout.decode().strip("[]\n").split(", ")]
    assert len(losses) == 6 and np.isfinite(losses).all()
