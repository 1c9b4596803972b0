import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy.special import log_softmax, softmax

from tests.cut_off import assert_goes_on
from tests.toy_images import CONFIG, NUM_CLASSES, TinyClassifier, draw_batch, draw_set
from utilgen_jax.bilevel.examples import labelled
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import StepKey
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import init_classifier, make_optimizer, predict_logits, train_classifier
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.models.classifiers import SmallCNN
from utilgen_jax.runtime import sharding
from utilgen_jax.runtime.schedules import warmup_cosine
from utilgen_jax.runtime.training_loop import TrainingLoop

draw = jax.jit(draw_batch, static_argnums=0)


def train(real, synthetic=None, seed=0, module=None, loop=None, teachers=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train_classifier(
        Classifier(module or TinyClassifier()),
        config,
        real,
        synthetic,
        jax.random.key(seed),
        loop or TrainingLoop(),
        teachers,
    )


def accuracy(params, examples, module=None):
    logits = predict_logits(Classifier(module or TinyClassifier()), params, examples.inputs, 50)
    return (logits.argmax(-1) == examples.labels).mean()


def assert_equal(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0})), first, second)


def largest_difference(first, second):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), first, second)
    return max(jax.tree.leaves(differences))


@pytest.mark.slow
def test_rare_classes_are_found_again_with_balanced_softmax():
    shots, _ = draw_set(40, seed=0, noise=0.8)
    test, _ = draw_set(100, seed=2, noise=0.8)
    rare = np.asarray(shots.labels) == 3
    chosen = np.concatenate([np.flatnonzero(~rare), np.flatnonzero(rare)[:3]])
    recalls = {}
    for loss in ("softmax", "balanced_softmax"):
        logits = predict_logits(Classifier(TinyClassifier()), train(shots.take(chosen), loss=loss), test.inputs, 50)
        recalls[loss] = (logits.argmax(-1) == 3)[test.labels == 3].mean()
    assert recalls["balanced_softmax"] > recalls["softmax"] + 0.05


def test_balanced_softmax_learns_a_class_that_only_synthetic_images_show():
    real, (synthetic, _) = draw_set(4, seed=0)[0], draw_set(10, seed=1)
    known = real.take(np.flatnonzero(np.asarray(real.labels) != 3))
    losses = []
    train(
        known,
        synthetic,
        loss="balanced_softmax",
        steps=2,
        loop=TrainingLoop(lambda step, loss: losses.append(float(loss))),
    )
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_images_teach_too_and_weight_zero_stays_without_influence(mixing):
    real, _ = draw_set(20, seed=0)
    test, _ = draw_set(50, seed=2)
    params = train(real, mixing=mixing, steps=100)
    assert accuracy(params, test) > 0.9
    assert largest_difference(params, train(real, steps=100)) > 0.01

    images = draw_set(10, seed=1)[0].inputs
    first, other = (labelled(images, np.full(40, label), NUM_CLASSES) for label in (0, 1))
    zero = np.zeros(40, np.float32)
    losses = [[], []]
    for reported, synthetic in zip(losses, (first, other), strict=True):
        weighted = dataclasses.replace(synthetic, weights=zero)
        train(
            real,
            weighted,
            mixing=mixing,
            steps=3,
            loop=TrainingLoop(lambda step, loss, reported=reported: reported.append(float(loss))),
        )
    assert losses[0] == losses[1]


def initial_params(*seeds):
    """Stacked parameters of classifiers that no training has touched."""
    drawn = [init_classifier(Classifier(TinyClassifier()), (8, 8, 1), jax.random.key(seed)) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)


def first_loss(*arguments, **changes):
    losses = []
    train(*arguments, steps=1, loop=TrainingLoop(lambda step, loss: losses.append(float(loss))), **changes)
    return losses[0]


@pytest.mark.parametrize(("mixing", "loss"), [("none", "softmax"), ("mixup", "softmax"), ("mixup", "balanced_softmax")])
def test_a_target_is_what_the_teachers_say_of_the_image_that_is_learnt_from(mixing, loss):
    real, (synthetic, _) = draw_set(4, seed=0)[0].take(np.arange(13)), draw_set(10, seed=1)
    weights = np.linspace(0, 2, len(synthetic), dtype=np.float32)
    synthetic, teachers = dataclasses.replace(synthetic, weights=weights), initial_params(5, 6)
    found = first_loss(real, synthetic, teachers=teachers, mixing=mixing, loss=loss)

    config, key = dataclasses.replace(CONFIG, mixing=mixing), jax.random.key(0)
    step_key = jax.random.fold_in(jax.random.fold_in(key, 1), 0)
    batch = draw(config, real, synthetic, step_key).dense()
    images, weights = np.asarray(batch.inputs), np.asarray(batch.weights)[:, None]
    assert np.ptp(weights) > 0.5
    if mixing == "mixup":
        images, weights = MIXINGS[mixing](images, weights, jax.random.fold_in(step_key, StepKey.MIXING), 1.0)
    # With balanced softmax too: a teacher's opinion does not depend on how frequent the classes are.
    said = np.mean([softmax(predict(params, images), -1) for params in unstack(teachers)], 0)
    smoothed = (1 - CONFIG.label_smoothing) * said + CONFIG.label_smoothing / NUM_CLASSES
    student = init_classifier(Classifier(TinyClassifier()), (8, 8, 1), jax.random.fold_in(key, 0))
    losses = -np.sum(smoothed * log_softmax(predict(student, images), -1), -1)
    assert found == pytest.approx(float(np.mean(np.asarray(weights)[:, 0] * losses)), rel=1e-5)
    assert abs(found - first_loss(real, synthetic, mixing=mixing, loss=loss)) > 0.01


def predict(params, images):
    return predict_logits(Classifier(TinyClassifier()), params, images, 50)


def unstack(teachers):
    return [jax.tree.map(lambda leaf, place=place: leaf[place], teachers) for place in range(2)]


def test_teachers_overrule_labels_on_any_mesh():
    real, (synthetic, _) = draw_set(4, seed=0)[0], draw_set(10, seed=1)
    relabelled = dataclasses.replace(synthetic, targets=(synthetic.targets + 1) % NUM_CLASSES)
    teachers = initial_params(5, 6)
    taught = train(real, synthetic, steps=3, mixing="mixup", teachers=teachers)
    assert largest_difference(taught, train(real, relabelled, steps=3, mixing="mixup", teachers=teachers)) == 0
    with jax.set_mesh(sharding.make_mesh(8)):
        placed = sharding.replicate((real, synthetic, teachers))
        found = train(*placed[:2], steps=3, mixing="mixup", teachers=placed[2])
    assert_equal(found, taught, rtol=1e-4, atol=1e-5)


def test_randaugment_reaches_real_and_synthetic_images_and_draws_anew_each_step(monkeypatch):
    seen = []

    def spy(images, rng):
        seen.append((images.copy(), rng.integers(2**31)))
        return 255 - images

    monkeypatch.setattr("utilgen_jax.classifier.dataset.randaugment", spy)
    dark, bright = (labelled(np.full((4, 8, 8, 1), grey, np.float32), np.arange(4), 4) for grey in (-1, 0.5))
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
    train(real, synthetic, seed=4, steps=3, loop=TrainingLoop(lambda step, loss: seen.append((step, float(loss)))))
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
        torch.tensor(np.array(module.apply({"params": params}, batch.inputs))),
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
    params = train(real, module=module, loop=TrainingLoop(lambda step, loss: losses.append(float(loss))))
    assert accuracy(params, test, module) > 0.95
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_it_learns_by_sgd_too():
    real, _ = draw_set(4, seed=0)
    test, _ = draw_set(50, seed=2)
    params = train(real, optimizer="sgd", learning_rate=0.1)
    assert accuracy(params, test) > 0.9


def test_samples_of_weight_zero_have_no_influence_at_all():
    real, _ = draw_set(2, seed=0)
    synthetic, _ = draw_set(20, seed=1)
    is_wrong = np.arange(80) % 4 < 3
    synthetic = labelled(synthetic.inputs, (synthetic.labels + is_wrong) % NUM_CLASSES, NUM_CLASSES)
    test, _ = draw_set(50, seed=2)
    weights = np.where(is_wrong, 0.0, 1 / (1 - is_wrong.mean())).astype(np.float32)
    weighted = train(real, dataclasses.replace(synthetic, weights=weights))

    # To the last bit: neither the image nor the label of such a sample matters.
    rng = np.random.default_rng(0)
    images = np.where(is_wrong[:, None, None, None], rng.uniform(-1, 1, synthetic.inputs.shape), synthetic.inputs)
    labels = np.where(is_wrong, rng.integers(NUM_CLASSES, size=len(is_wrong)), synthetic.labels)
    others = labelled(images.astype(np.float32), labels, NUM_CLASSES).replace(weights=weights)
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


def test_methods_of_a_comparison_share_their_compilations():
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
        logits = predict_logits(Classifier(TinyClassifier()), found, real.inputs, 5)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found))
    assert_equal(found, expected, rtol=1e-4, atol=1e-5)
    expected_logits = predict_logits(Classifier(TinyClassifier()), expected, real.inputs, 16)
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
        shots = draw_set(30, seed=0)[0]
        real = sharding.replicate(labelled(shots.inputs, shots.labels, 10))
        train(
            real,
            module=SmallCNN(10, 8),
            steps=6,
            batch_size=64,
            loop=TrainingLoop(lambda step, loss: losses.append(float(loss))),
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


def test_sgd_has_momentum_and_weight_decay_as_torchs_has():
    config = ClassifierConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.01, steps=4)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    rates = np.asarray(jax.jit(warmup_cosine(0.1, 4))(np.arange(4)))
    oracle = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=0.01)
    params, optimizer = jnp.array([1.0, -2.0]), make_optimizer(config)
    state = optimizer.init(params)
    for rate in rates:
        oracle.param_groups[0]["lr"] = float(rate)
        oracle.zero_grad()
        (weight**3).sum().backward()
        oracle.step()
        updates, state = optimizer.update(3 * params**2, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, optimizer):
    real, synthetic = draw_set(4, seed=0)[0], draw_set(8, seed=1)[0]
    changes = {"steps": 6, "mixing": "cutmix", "optimizer": optimizer}
    assert_goes_on(lambda loop: train(real, synthetic, loop=loop, **changes), tmp_path, cut_after=4)


def test_on_several_devices_too(tmp_path):
    real, synthetic = draw_set(4, seed=0)[0], draw_set(8, seed=1)[0]
    with jax.set_mesh(sharding.make_mesh(fsdp=2)):
        real, synthetic = sharding.replicate((real, synthetic))
        assert_goes_on(lambda loop: train(real, synthetic, loop=loop, steps=5), tmp_path, cut_after=3)
