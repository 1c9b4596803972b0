"""Batches of images that are streamed: those of the same images in memory, from any step on."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.data.test_streamed_images import PIXELS, streamed
from utilgen_jax.bilevel.examples import labelled
from utilgen_jax.classifier.batches import make_draw
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput

SEES = ClassifierInput(num_classes=2, image_size=4, channels=1)
CONFIG = ClassifierConfig(steps=4, batch_size=6, synthetic_fraction=0.5, crop_area=0.5, flip=True)
LABELS = np.arange(20) % 2
REAL = np.random.default_rng(2).integers(0, 256, (20, 4, 4, 1), np.uint8)


@dataclasses.dataclass(frozen=True)
class Real:
    def read(self, indices):
        return REAL[np.asarray(indices)]


def examples(is_streamed: bool):
    """Real images of the classifier's size, and weighted ones of a pool whose images are larger."""
    images = streamed(source=Real(), image_shape=(4, 4, 1)) if is_streamed else jax.numpy.asarray(REAL)
    pool = streamed(seen_as=(4, 1)) if is_streamed else SEES.stored_images(PIXELS)
    weighted = dataclasses.replace(labelled(pool, LABELS, 2), weights=jax.numpy.linspace(0.1, 2, 20))
    return labelled(images, LABELS, 2), weighted


@pytest.mark.parametrize(
    ("changes", "streams"),
    [
        ({}, (True, True)),
        ({"augmentation": "randaugment"}, (True, False)),
        ({"synthetic_fraction": 1.0}, (True, True)),
        ({}, (False, True)),
    ],
)
def test_streamed_batches_have_the_bits_of_those_in_memory_from_any_step_on(changes, streams):
    config, key = dataclasses.replace(CONFIG, **changes), jax.random.key(7)
    real, pool = (examples(is_streamed)[part] for part, is_streamed in enumerate(streams))
    in_memory = make_draw(config, *examples(False), key)
    from_disk = make_draw(config, real, pool, key)
    for step in (0, 1, 2, 3, 1, 2):
        batch, expected = from_disk(step), in_memory(step)
        assert jax.tree.structure(batch) == jax.tree.structure(expected)
        assert all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(expected)))


def test_real_images_alone():
    key = jax.random.key(3)
    batch, expected = (make_draw(CONFIG, examples(kind)[0], None, key)(2) for kind in (True, False))
    assert np.array_equal(batch.inputs, expected.inputs) and np.array_equal(batch.targets, expected.targets)
