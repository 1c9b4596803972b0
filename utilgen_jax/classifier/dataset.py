"""Batches of the classifier's training: real and synthetic images, shifted and augmented."""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.bilevel.examples import Examples, concatenate
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.data.augment.randaugment import randaugment
from utilgen_jax.data.images import as_floats, resize, scaled, set_channels, to_float, to_uint8
from utilgen_jax.runtime.sharding import place, split_batch, to_host
from utilgen_jax.types import Array

_PIXELS_AT_ONCE = 2**26  # numbers, 256 MiB as float32


class StepKey(enum.IntEnum):
    """What a training step's key is folded with, for each use of randomness in it."""

    REAL = 0
    SYNTHETIC = 1
    SHIFT = 2
    VALIDATION = 3
    MIXING = 4
    RANDAUGMENT = 5
    CROP = 6
    FLIP = 7


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ClassifierInput:
    """What the classifier sees of any image, and the form of its labels.

    Attributes:
        num_classes: K.
        image_size: pixels a side.
        channels: 1 or 3.
    """

    num_classes: int
    image_size: int
    channels: int

    def images(self, images: Array) -> jax.Array:
        """Scales generated images, float [N, H, W, 3] in [-1, 1], to what the classifier sees; differentiable."""
        return set_channels(resize(images, self.image_size), self.channels)

    def stored_images(self, images: np.ndarray) -> jax.Array:
        """The same of images uint8 [N, S, S, 3], which stay bytes where they have that size and number of channels."""
        if images.shape[1:] == (self.image_size, self.image_size, self.channels):
            return jnp.asarray(images)
        # A part at a time: as floats, all of them may not fit the memory.
        size = max(1, _PIXELS_AT_ONCE // images[0].size)
        starts = range(0, len(images), size)
        parts = [scaled(images[start : start + size], self.image_size, self.channels) for start in starts]
        return jnp.concatenate(parts)

    def examples(self, images: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> Examples:
        """Labels generated images as the classifier trains on them; differentiable in the images.

        Args:
            images: float32 [M, S, S, 3] in [-1, 1].
            labels: int [M].
            label_smoothing: share of the targets that is spread over all classes.
        """
        targets = optax.smooth_labels(jax.nn.one_hot(labels, self.num_classes), label_smoothing)
        return Examples(self.images(images), targets)


@struct.dataclass
class Drawn:
    """What a batch is made of.

    Attributes:
        real: rows of the real images, int32 [R].
        synthetic: rows of the pool, int32 [S]; None where there is none.
        offsets: of each image's shift, int32 [R + S, 2].
        boxes: of each image's random crop, see `draw_boxes`; None: no crops.
        is_mirrored: bool [R + S]; None: none is.
    """

    real: jax.Array
    synthetic: jax.Array | None
    offsets: jax.Array
    boxes: jax.Array | None = None
    is_mirrored: jax.Array | None = None


def draw_rows(
    config: ClassifierConfig, num_real: int | jax.Array, pool_size: int | jax.Array | None, key: jax.Array
) -> Drawn:
    """Draws what a batch is made of; with replacement: a handful of shots fills it too.

    Args:
        config: batch size, synthetic fraction, shifts, crops and mirroring.
        num_real: number of real images.
        pool_size: number of synthetic images, or None.
        key: PRNG key of the step.
    """
    number, has_crops = config.num_synthetic if pool_size is not None else 0, config.crop_area < 1
    size, shift_key = config.batch_size, jax.random.fold_in(key, StepKey.SHIFT)
    return Drawn(
        real=jax.random.randint(jax.random.fold_in(key, StepKey.REAL), (size - number,), 0, num_real),
        synthetic=None if pool_size is None else draw_synthetic(config, pool_size, key),
        offsets=jax.random.randint(shift_key, (size, 2), 0, 2 * config.max_shift + 1),
        boxes=draw_boxes(jax.random.fold_in(key, StepKey.CROP), size, config.crop_area) if has_crops else None,
        is_mirrored=jax.random.bernoulli(jax.random.fold_in(key, StepKey.FLIP), shape=(size,)) if config.flip else None,
    )


def draw_boxes(key: jax.Array, number: int, least_area: float) -> jax.Array:
    """Boxes of random crops, as torchvision's RandomResizedCrop draws them.

    An area uniform from the least one to the whole image, an aspect ratio log-uniform from 3/4 to 4/3, any place. A
    side that the image does not have is cut to it, where torchvision draws again.

    Args:
        key: PRNG key.
        number: B.
        least_area: part of the image.

    Returns:
        Float32 [B, 4]: top, left, height and width, as parts of the image's.
    """
    area_key, ratio_key, place_key = (jax.random.fold_in(key, use) for use in range(3))
    area = jax.random.uniform(area_key, (number,), minval=least_area, maxval=1.0)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (number,), minval=-1.0, maxval=1.0) * jnp.log(4 / 3))
    lengths = jnp.minimum(jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1)), 1.0)
    return jnp.concatenate([jax.random.uniform(place_key, (number, 2)) * (1 - lengths), lengths], axis=1)


def take_batch(config: ClassifierConfig, real: Examples, synthetic: Examples | None, drawn: Drawn) -> Examples:
    """One batch of augmented images, real ones first.

    Args:
        config: see `draw_rows`.
        real: the real images.
        synthetic: synthetic ones, or None.
        drawn: of `draw_rows`.

    Returns:
        `config.batch_size` examples; with synthetic images the last `config.num_synthetic` are synthetic, and
        `is_weighted`.
    """
    taken = None
    if synthetic is not None:
        assert drawn.synthetic is not None
        taken = synthetic.take(drawn.synthetic)
    return join_batch(config, real.take(drawn.real), taken, drawn)


def join_batch(config: ClassifierConfig, real: Examples, synthetic: Examples | None, drawn: Drawn) -> Examples:
    """The same of examples that are taken already."""
    batch = with_floats(real)
    if synthetic is not None:
        batch = concatenate(batch, with_floats(synthetic), fill=("attributes",))
    batch = split_batch(dataclasses.replace(batch, is_weighted=None))
    images = _shift(batch.inputs, drawn.offsets, config.max_shift)
    if drawn.boxes is not None:
        images = crop_and_resize(images, drawn.boxes)
    if drawn.is_mirrored is not None:
        images = jnp.where(drawn.is_mirrored[:, None, None, None], images[:, :, ::-1], images)
    return dataclasses.replace(batch, inputs=images, is_weighted=jnp.arange(len(batch)) >= len(drawn.real))


def with_floats(examples: Examples) -> Examples:
    """Examples whose images may be held as bytes, with float32 images in [-1, 1]."""
    return dataclasses.replace(examples, inputs=as_floats(examples.inputs))


def draw_synthetic(config: ClassifierConfig, pool_size: int | jax.Array, key: jax.Array) -> jax.Array:
    """Which images of the pool `draw_rows` draws with this key: int32 [config.num_synthetic]."""
    return jax.random.randint(jax.random.fold_in(key, StepKey.SYNTHETIC), (config.num_synthetic,), 0, pool_size)


def random_shift(images: jax.Array, key: jax.Array, max_shift: int) -> jax.Array:
    """Shifts each image of [B, H, W, C] by up to `max_shift` pixels each way, repeating its edge."""
    return _shift(images, jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1), max_shift)


def _shift(images: jax.Array, offsets: jax.Array, max_shift: int) -> jax.Array:
    """Shifts by offsets int [B, 2] in 0 .. 2 * max_shift, of which max_shift is no shift."""
    if max_shift == 0:
        return images
    margin = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def crop_and_resize(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Each of the images [B, H, W, C] becomes its box, see `draw_boxes`, scaled linearly to the image's size."""
    size = jnp.array(images.shape[1:3], jnp.float32)

    def crop(image: jax.Array, box: jax.Array) -> jax.Array:
        scale = 1 / box[2:]
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -box[:2] * size * scale, "linear")

    return jax.vmap(crop)(images, boxes)


def apply_randaugment(batch: Examples, key: jax.Array) -> Examples:
    """Augments a batch by RandAugment: on the host, by Pillow, as uint8; the images return to their devices.

    Deterministic in the key. With several processes all of them do the same, to the whole batch.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    augmented = to_float(randaugment(to_uint8(to_host(batch.inputs)), rng))
    return dataclasses.replace(batch, inputs=place(augmented, batch.inputs.sharding))
