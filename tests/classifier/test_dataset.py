import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from PIL import Image

from tests.toy_images import CONFIG, draw_batch, draw_set
from utilgen_jax.bilevel.examples import Examples, labelled
from utilgen_jax.classifier import dataset
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import (
    ClassifierInput,
    apply_randaugment,
    crop_and_resize,
    draw_boxes,
    random_shift,
)
from utilgen_jax.data.images import to_float
from utilgen_jax.runtime import sharding

NUM_CLASSES = 60
draw = jax.jit(draw_batch, static_argnums=0)


def numbered(start, count):
    """Images of one grey each, by which they can be told apart after any shift; labels and weights tell the same."""
    numbers = np.arange(start, start + count)
    images = np.broadcast_to(numbers[:, None, None, None] / 100, (count, 8, 8, 1)).astype(np.float32)
    return Examples(jnp.array(images), jnp.eye(NUM_CLASSES)[numbers], weights=jnp.array(numbers, jnp.float32))


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("batch_size", "fraction", "expected"),
    [(64, 0.5, 32), (64, 0.25, 16), (64, 0.001, 1), (64, 0.999, 63), (2, 0.9, 1), (64, 1.0, 64)],
)
def test_a_mixed_batch_has_both_kinds_unless_only_one_is_requested(batch_size, fraction, expected):
    config = dataclasses.replace(CONFIG, batch_size=batch_size, synthetic_fraction=fraction, max_shift=0)
    assert config.num_synthetic == expected
    batch = draw(config, numbered(0, 5), numbered(50, 7), jax.random.key(0))
    is_synthetic = np.asarray(batch.labels) >= 50
    np.testing.assert_array_equal(is_synthetic, np.arange(batch_size) >= batch_size - expected)
    np.testing.assert_array_equal(batch.is_weighted, is_synthetic)


def test_batches_keep_images_labels_and_weights_together():
    draws = [draw(CONFIG, numbered(0, 3), numbered(50, 7), jax.random.key(seed)) for seed in range(20)]
    for batch in draws:
        assert batch.inputs.shape == (16, 8, 8, 1) and batch.labels.dtype == jnp.int32
        np.testing.assert_array_equal(batch.targets, np.eye(NUM_CLASSES)[batch.labels])
        np.testing.assert_array_equal(batch.labels, batch.weights)
        expected = np.broadcast_to(np.asarray(batch.labels)[:, None, None, None] / 100, batch.inputs.shape)
        np.testing.assert_allclose(batch.inputs, expected, rtol=1e-6)
    # With replacement and evenly: three shots fill the real half, each with about a third of it.
    counts = np.bincount(np.concatenate([batch.labels for batch in draws]), minlength=57)
    assert counts[:3].sum() == counts[50:].sum() == 160
    assert counts[:3].min() > 30 and counts[50:].min() > 8


def test_soft_targets_stay_as_they_are_beside_hard_ones():
    soft = np.eye(NUM_CLASSES, dtype=np.float32)[[50, 51]] * 0.5 + np.float32(1 / 120)
    synthetic = numbered(50, 2).replace(targets=jnp.asarray(soft))
    batch = draw(CONFIG, numbered(0, 3), synthetic, jax.random.key(0))
    numbers = np.asarray(batch.weights).astype(int)
    expected = np.where(numbers[:, None] < 50, np.eye(NUM_CLASSES)[numbers], soft[numbers % 50 % 2])
    np.testing.assert_array_equal(batch.targets, expected.astype(np.float32))
    only_real = draw(CONFIG, numbered(0, 3), None, jax.random.key(0))
    np.testing.assert_array_equal(only_real.targets.sum(-1), 1)


def test_real_images_have_no_attributes_and_synthetic_ones_keep_theirs():
    synthetic = numbered(50, 7).replace(attributes=jnp.arange(50.0, 57.0)[:, None] * jnp.array([1.0, -1.0]))
    batch = draw(CONFIG, numbered(0, 3), synthetic, jax.random.key(0))
    expected = np.where(np.asarray(batch.labels) >= 50, batch.labels, 0)[:, None] * [1, -1]
    np.testing.assert_array_equal(batch.attributes, expected)
    assert draw(CONFIG, numbered(0, 3), numbered(50, 7), jax.random.key(0)).attributes is None


def test_batches_depend_on_the_key_alone():
    real, synthetic = numbered(0, 30), numbered(30, 30)
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


def test_randaugment_changes_images_by_the_key_and_nothing_else():
    batch = sharding.replicate(draw_set(10, seed=0)[0])
    augmented, again, other = (apply_randaugment(batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(augmented.inputs, again.inputs)
    # Of 14 operations, some leave an image as it is: none of two in a row does so to most.
    changed = (np.abs(augmented.inputs - batch.inputs) > 1 / 127).any((1, 2, 3))
    assert changed.mean() > 0.7 and (augmented.inputs != other.inputs).any()
    assert augmented.inputs.dtype == jnp.float32 and np.abs(augmented.inputs).max() <= 1
    assert_equal(augmented.replace(inputs=None), batch.replace(inputs=None))


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (8, 3), (8, 1)])
def test_the_classifiers_input_has_its_size_and_channels_and_passes_gradients(size, channels):
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    shown = ClassifierInput(5, size, channels)
    found = shown.images(images)
    assert found.shape == (2, size, size, channels)
    if (size, channels) == (16, 3):
        np.testing.assert_allclose(found, images, atol=1e-6)
    gradient = jax.grad(lambda images: jnp.sum(shown.images(images) ** 2))(images)
    assert (np.abs(gradient).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_examples_of_generated_images_have_smoothed_targets(label_smoothing):
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
    shown, labels = ClassifierInput(5, 4, 1), np.array([0, 4, 2, 2])
    examples = shown.examples(images, jnp.asarray(labels), label_smoothing)
    np.testing.assert_array_equal(examples.inputs, shown.images(images))
    np.testing.assert_array_equal(examples.labels, labels)
    # The cross-entropy with these targets is torch's with this smoothing.
    logits = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none", label_smoothing=label_smoothing
    )
    np.testing.assert_allclose(optax.softmax_cross_entropy(logits, examples.targets), expected, rtol=1e-5)


@pytest.mark.parametrize("numbers_at_once", [1, 2 * 16 * 16 * 3, 10**6])
def test_stored_images_are_scaled_in_parts(numbers_at_once, monkeypatch):
    monkeypatch.setattr(dataset, "_PIXELS_AT_ONCE", numbers_at_once)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    sees = ClassifierInput(num_classes=3, image_size=8, channels=1)
    np.testing.assert_allclose(sees.stored_images(images), sees.images(to_float(images)), atol=1e-6)


def test_stored_images_of_the_classifiers_size_stay_bytes_until_they_are_in_a_batch():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    kept = ClassifierInput(num_classes=3, image_size=8, channels=3).stored_images(images)
    np.testing.assert_array_equal(kept, images)
    assert kept.dtype == np.uint8
    config = dataclasses.replace(CONFIG, max_shift=0)
    batches = [
        draw(config, labelled(each, np.zeros(5, int), 3), None, jax.random.key(0)) for each in (kept, to_float(images))
    ]
    assert_equal(*batches)


def test_crops_are_those_of_pillow():
    images = np.random.default_rng(0).standard_normal((3, 12, 12, 1), np.float32)
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.25, 0.1, 0.5, 0.6], [0.3, 0.45, 0.7, 0.55]], np.float32)
    cropped = crop_and_resize(jnp.asarray(images), jnp.asarray(boxes))
    for image, (top, left, height, width), found in zip(images, 12 * boxes, cropped, strict=True):
        whole = Image.fromarray(image[..., 0])
        expected = whole.resize((12, 12), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        np.testing.assert_allclose(found[..., 0], np.asarray(expected), atol=1e-5)


def test_boxes_lie_in_the_image_and_have_the_areas_and_ratios_asked_for():
    top, left, height, width = np.asarray(draw_boxes(jax.random.key(0), 2000, 0.08)).T
    assert min(top.min(), left.min()) >= 0 and max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.08 * 0.99 <= area.min() and 0.45 < np.median(area) < 0.6
    assert np.log(4 / 3) * 1.001 >= np.abs(np.log(ratio)).max() and abs(np.log(ratio).mean()) < 0.02


@pytest.mark.parametrize("settings", [{"crop_area": 0.3}, {"flip": True}, {"crop_area": 0.5, "flip": True}])
def test_a_batch_is_cropped_and_mirrored_by_its_key(settings):
    real = labelled(np.random.default_rng(0).standard_normal((4, 8, 8, 1), np.float32), np.arange(4) % 2, 2)
    config = ClassifierConfig(batch_size=16, max_shift=0, **settings)
    first, again, other = (draw_batch(config, real, None, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert (first.inputs != other.inputs).any()
    plain = draw_batch(dataclasses.replace(config, crop_area=1.0, flip=False), real, None, jax.random.key(0))
    np.testing.assert_array_equal(first.targets, plain.targets)
    same = (first.inputs == plain.inputs).all(axis=(1, 2, 3))
    mirrored = (first.inputs == plain.inputs[:, :, ::-1]).all(axis=(1, 2, 3))
    if "crop_area" not in settings:
        assert (same ^ mirrored).all() and 2 < same.sum() < 14
    else:
        assert not same.any()
