"""A toy problem for the tests of training: four classes of 8 x 8 images, a classifier quickly compiled, configs."""

import numpy as np
from flax import linen as nn

from utilgen_jax.bilevel.examples import labelled
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import draw_rows, take_batch
from utilgen_jax.valuation.config import ValuationConfig

NUM_CLASSES = 4
CONFIG = ClassifierConfig(
    steps=60,
    batch_size=16,
    synthetic_fraction=0.5,
    learning_rate=1e-2,
    weight_decay=1e-4,
    label_smoothing=0.1,
    max_shift=1,
    mixing="none",
)
VALUATION = ValuationConfig(
    plain_steps=2,
    synthetic_fraction=0.75,
    inner_learning_rate=1e-3,
    steps=4,
    hidden=10,
    learning_rate=0.01,
    weight_decay=1e-4,
    validation_batch_size=0,
)


class TinyClassifier(nn.Module):
    """One hidden layer."""

    num_classes: int = NUM_CLASSES

    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(16, name="hidden")(images.reshape(images.shape[0], -1)))
        return nn.Dense(self.num_classes, name="head")(hidden)


def draw_images(classes, seed, noise=0.3):
    """Float32 [N, 8, 8, 1]: a bright quadrant shows the class, the rest is noise."""
    images = np.random.default_rng(seed).normal(-0.5, noise, size=(len(classes), 8, 8, 1))
    for image, k in zip(images, classes, strict=True):
        row, column = 4 * (k // 2), 4 * (k % 2)
        image[row + 1 : row + 3, column + 1 : column + 3] += 1.0
    return images.astype(np.float32).clip(-1, 1)


def draw_set(per_class, seed, wrong=0.0, noise=0.3):
    """A training set with all weights 1, and which of its labels are wrong, bool [N]: the same part of each class."""
    classes = np.repeat(np.arange(NUM_CLASSES), per_class)
    is_wrong = np.tile(np.arange(per_class) < round(wrong * per_class), NUM_CLASSES)
    others = (classes + np.random.default_rng(seed).integers(1, NUM_CLASSES, size=len(classes))) % NUM_CLASSES
    labels = np.where(is_wrong, others, classes).astype(np.int32)
    return labelled(draw_images(classes, seed, noise), labels, NUM_CLASSES), is_wrong


def draw_batch(config, real, synthetic, key):
    """A batch of training, of random rows."""
    drawn = draw_rows(config, len(real), None if synthetic is None else len(synthetic), key)
    return take_batch(config, real, synthetic, drawn)
