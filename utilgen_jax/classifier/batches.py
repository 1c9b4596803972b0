"""The batches of a training's steps: from images in memory, or from images that are read for the steps to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import (
    Drawn,
    StepKey,
    apply_randaugment,
    draw_rows,
    join_batch,
    take_batch,
)
from utilgen_jax.data.streamed_images import StreamedImages
from utilgen_jax.runtime.sharding import to_host

_STEPS_AT_ONCE = 256  # whose rows one program draws, for images that are to be read ahead


def make_draw(
    config: ClassifierConfig, real: Examples, synthetic: Examples | None, key: jax.Array
) -> Callable[[int], Examples]:
    """Returns what makes the batch of a step, see `draw_training_batch`.

    Where images are streamed, it is called for one step after the other, from any step on.

    Args:
        config, real, synthetic, key: see `draw_training_batch`.
    """
    if is_streamed(real) or (synthetic is not None and is_streamed(synthetic)):
        return _StreamedDraw(config, real, synthetic, key)
    return partial(draw_training_batch, config, real, synthetic, key)


def is_streamed(examples: Examples) -> bool:
    """Whether the images are not in memory."""
    return isinstance(examples.inputs, StreamedImages)


def draw_training_batch(
    config: ClassifierConfig, real: Examples, synthetic: Examples | None, key: jax.Array, step: int
) -> Examples:
    """Draws and augments the batch of a step, see `draw_batch`; mixing is left to the step.

    Args:
        config, real, synthetic: see `train_classifier`.
        key: PRNG key of the training's batches.
        step: number of the step.
    """
    drawn = _draw(config, real, synthetic, key, step)
    return _augmented(config, _take_batch(_read_by_the_draw(config), real, synthetic, drawn), key, step)


def _draw(config: ClassifierConfig, real: Examples, synthetic: Examples | None, key: jax.Array, step: int) -> Drawn:
    # Random numbers take long to compile: one program draws for images of any number.
    numbers = len(real), None if synthetic is None else len(synthetic)
    return _draw_rows(_read_by_the_draw(config), *numbers, key, step)


def _augmented(config: ClassifierConfig, batch: Examples, key: jax.Array, step: int) -> Examples:
    if config.augmentation != "randaugment":
        return batch
    return apply_randaugment(batch, jax.random.fold_in(jax.random.fold_in(key, step), StepKey.RANDAUGMENT))


class _StreamedDraw:
    """Draws the rows of all steps to come, and has their images read ahead.

    Args:
        config, real, synthetic, key: see `draw_training_batch`.
    """

    def __init__(self, config: ClassifierConfig, real: Examples, synthetic: Examples | None, key: jax.Array) -> None:
        self._config = config
        self._real = real
        self._synthetic = synthetic
        self._key = key
        self._next = -1  # the step whose images come next
        self._images: tuple[Iterator[jax.Array], Iterator[jax.Array]] = iter(()), iter(())

    def __call__(self, step: int) -> Examples:
        """The batch of a step."""
        if step != self._next:
            self._open(step)
        self._next = step + 1
        drawn = _draw(self._config, self._real, self._synthetic, self._key, step)
        parts = [
            None if examples is None else self._part(examples, rows, images)
            for examples, rows, images in zip(
                (self._real, self._synthetic), (drawn.real, drawn.synthetic), self._images, strict=True
            )
        ]
        assert parts[0] is not None
        batch = _join_batch(_read_by_the_draw(self._config), parts[0], parts[1], drawn)
        return _augmented(self._config, batch, self._key, step)

    def _open(self, first: int) -> None:
        """Starts reading from a step on."""
        config, last = _read_by_the_draw(self._config), self._config.steps
        numbers = len(self._real), None if self._synthetic is None else len(self._synthetic)
        rows: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        for begin in range(first, last, _STEPS_AT_ONCE):
            drawn = _rows_of_steps(config, *numbers, self._key, np.arange(begin, begin + _STEPS_AT_ONCE))
            for of_part, each in zip(rows, drawn, strict=True):
                if each is not None:
                    of_part.append(to_host(each)[: last - begin])
        self._images = self._batches(self._real, rows[0]), self._batches(self._synthetic, rows[1])

    def _batches(self, examples: Examples | None, rows: list[np.ndarray]) -> Iterator[jax.Array]:
        if examples is None or not is_streamed(examples) or not rows[0].size:
            return iter(())
        return examples.inputs.batches(np.concatenate(rows))

    def _part(self, examples: Examples, rows: jax.Array | None, images: Iterator[jax.Array]) -> Examples:
        if not is_streamed(examples):
            return _take(examples, rows)
        taken = _take(dataclasses.replace(examples, inputs=None), rows)
        # A batch that is synthetic alone has no real images.
        return dataclasses.replace(taken, inputs=next(images, jnp.zeros((0, *examples.inputs.shape[1:]))))


@cache
def _read_by_the_draw(config: ClassifierConfig) -> ClassifierConfig:
    """What a batch depends on, all else at its default: trainings that differ elsewhere share a program."""
    names = ("batch_size", "synthetic_fraction", "max_shift", "crop_area", "flip")
    return ClassifierConfig(**{name: getattr(config, name) for name in names})


@partial(jax.jit, static_argnames="config")
def _draw_rows(config: ClassifierConfig, num_real: int, pool_size: int | None, key: jax.Array, step: int) -> Drawn:
    return draw_rows(config, num_real, pool_size, jax.random.fold_in(key, step))


@partial(jax.jit, static_argnames="config")
def _rows_of_steps(
    config: ClassifierConfig, num_real: int, pool_size: int | None, key: jax.Array, steps: np.ndarray
) -> tuple[jax.Array, jax.Array | None]:
    """Rows of real and of synthetic images of several steps, int [n, B] each; what augments them is not drawn."""

    def rows(step: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        drawn = draw_rows(config, num_real, pool_size, jax.random.fold_in(key, step))
        return drawn.real, drawn.synthetic

    return jax.vmap(rows)(jnp.asarray(steps))


_take_batch = jax.jit(take_batch, static_argnames="config")
_join_batch = jax.jit(join_batch, static_argnames="config")
_take = jax.jit(Examples.take)
