"""The batches of a training's steps: from images in memory, or from images that are read for the steps to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, reduce
from typing import Protocol

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
    draw_synthetic,
    join_batch,
    take_batch,
    with_floats,
)
from utilgen_jax.data.streamed_images import StreamedImages
from utilgen_jax.runtime.sharding import replicate, split_batch, to_host
from utilgen_jax.types import Array

_STEPS_AT_ONCE = 256  # whose rows one program draws, for images that are to be read ahead


class Draw(Protocol):
    """Makes the batch of a step."""

    def __call__(self, step: int, targets: jax.Array | None = None) -> Examples:
        """The batch of a step, in which the synthetic images have other targets if these are given."""
        ...


def make_draw(
    config: ClassifierConfig,
    real: Examples,
    synthetic: Examples | None,
    key: jax.Array,
    steps: range | None = None,
    folds: Sequence[np.ndarray] | None = None,
) -> Draw:
    """Returns what draws and augments the batch of a step, see `dataset.draw_rows`; mixing is left to the step.

    Where images are streamed, it is called for one step after the other, from any step on.

    Args:
        config, real, synthetic: see `train_classifier`.
        key: PRNG key of the training's batches.
        steps: that there are; None: all of the config's.
        folds: the real images that take part in step t are those of fold t mod F, rows int [n] each; None: all.
    """
    if is_streamed(real, synthetic):
        return _StreamedDraw(config, real, synthetic, key, steps or range(config.steps), folds)
    read, pool_size = _read_by_the_draw(config), None if synthetic is None else len(synthetic)
    folds = [np.arange(len(real))] if folds is None else folds
    rows = [replicate(np.asarray(fold, np.int32)) for fold in folds]

    def draw(step: int, targets: jax.Array | None = None) -> Examples:
        fold, pool = rows[step % len(rows)], synthetic
        if pool is not None and targets is not None:
            pool = dataclasses.replace(pool, targets=targets)
        # Random numbers take long to compile: one program draws for images of any number.
        drawn = _draw_rows(read, len(fold), pool_size, key, step)
        return _augmented(config, _take_batch(read, real, pool, drawn, fold), key, step)

    return draw


def is_streamed(*examples: Examples | None) -> bool:
    """Whether images of any of these are not in memory."""
    return any(each is not None and isinstance(each.inputs, StreamedImages) for each in examples)


def _augmented(config: ClassifierConfig, batch: Examples, key: jax.Array, step: int) -> Examples:
    if config.augmentation != "randaugment":
        return batch
    return apply_randaugment(batch, jax.random.fold_in(jax.random.fold_in(key, step), StepKey.RANDAUGMENT))


class RowsAhead:
    """Takes examples by rows that are drawn for all steps to come, so that streamed images are read ahead.

    Args:
        examples: to take from, in memory or streamed.
        draw: gives for steps, int [n], the rows of each, int [n, B].
        steps: that there are; each is taken after the one before it, from any on.
    """

    def __init__(self, examples: Examples, draw: Callable[[np.ndarray], Array], steps: range) -> None:
        self._examples = examples
        self._draw = draw
        self._steps = steps
        self._first = 0  # place among the steps of the first whose rows are drawn
        self._next = -1  # place of the step that comes next
        self._rows = np.zeros((0, 0), np.int32)
        self._images: Iterator[jax.Array] = iter(())

    def take(self, step: int, targets: jax.Array | None = None) -> Examples:
        """The examples of a step, with other targets if they are given."""
        place = self._steps.index(step)
        if place != self._next:
            self._open(place)
        self._next = place + 1
        rows = self._rows[place - self._first]
        examples = self._examples if targets is None else dataclasses.replace(self._examples, targets=targets)
        if not is_streamed(examples):
            return _take(examples, rows)
        # A batch that is synthetic alone has no real images.
        images = next(self._images) if rows.size else jnp.zeros((0, *examples.inputs.shape[1:]))
        return dataclasses.replace(_take(dataclasses.replace(examples, inputs=None), rows), inputs=images)

    def _open(self, first: int) -> None:
        """Starts reading from a step on."""
        drawn, every = [], self._steps.step
        for begin in self._steps[first::_STEPS_AT_ONCE]:
            drawn.append(to_host(self._draw(begin + every * np.arange(_STEPS_AT_ONCE))))
        self._first, self._rows = first, np.concatenate(drawn)[: len(self._steps) - first]
        if is_streamed(self._examples) and self._rows.size:
            self._images = self._examples.inputs.batches(self._rows)


def draw_ahead(
    examples: Examples,
    folds: Sequence[np.ndarray],
    size: int,
    key: jax.Array,
    steps: range,
    use: tuple[int, ...] = (),
) -> Callable[[int], Examples]:
    """Returns what draws examples of a fold in each step, with replacement, see `RowsAhead`.

    Args:
        examples: to draw from, in memory or streamed.
        folds: step t draws from fold t mod F, rows int [n] each.
        size: of a step's examples; 0: the whole fold, which is in memory then.
        key: PRNG key; a step's is that with the step folded in, and then each number of `use`.
        steps: that there are.
        use: what the key of a step is used for.
    """
    if not size:
        parts = [loaded(examples.take(fold)) for fold in folds]
        return lambda step: parts[step % len(parts)]

    ahead = RowsAhead(examples, _of_folds(folds, partial(_draw_places, size, use, key)), steps)
    return lambda step: _split(ahead.take(step))


def _of_folds(
    folds: Sequence[np.ndarray], draw: Callable[[int, np.ndarray], jax.Array]
) -> Callable[[np.ndarray], np.ndarray]:
    """What gives for steps the rows of each, int [n, B].

    Args:
        folds: step t draws from fold t mod F, rows int [n] each.
        draw: (images of a fold, steps) -> places in the fold.
    """

    def rows(steps: np.ndarray) -> np.ndarray:
        of_folds = [fold[to_host(draw(len(fold), steps))] for fold in folds]
        return np.stack(of_folds)[steps % len(folds), np.arange(len(steps))].astype(np.int32)

    return rows


def loaded(examples: Examples) -> Examples:
    """The examples, few enough for memory, with their images on the devices, float32 in [-1, 1]."""
    if is_streamed(examples):
        (images,) = examples.inputs.batches(np.arange(len(examples))[None])
        examples = dataclasses.replace(examples, inputs=replicate(images))
    return _with_floats(examples)


class _StreamedDraw:
    """Draws the rows of all steps to come once, and has their images read ahead.

    Args:
        config, real, synthetic, key, steps, folds: see `make_draw`.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        real: Examples,
        synthetic: Examples | None,
        key: jax.Array,
        steps: range,
        folds: Sequence[np.ndarray] | None = None,
    ) -> None:
        self._config = config
        self._key = key
        self._pool_size = None if synthetic is None else len(synthetic)
        read, folds = _read_by_the_draw(config), folds or [np.arange(len(real))]
        draw = partial(_real_rows, read, self._pool_size, key)
        self._real = RowsAhead(real, _of_folds(folds, draw), steps)
        self._synthetic = None
        if synthetic is not None:
            self._synthetic = RowsAhead(synthetic, partial(_synthetic_rows, read, len(synthetic), key), steps)

    def __call__(self, step: int, targets: jax.Array | None = None) -> Examples:
        """The batch of a step."""
        config = _read_by_the_draw(self._config)
        real = self._real.take(step)
        synthetic = None if self._synthetic is None else self._synthetic.take(step, targets)
        drawn = _augmentation(config, self._pool_size, self._key, step)
        return _augmented(self._config, _join_batch(config, real, synthetic, drawn), self._key, step)


@cache
def _read_by_the_draw(config: ClassifierConfig) -> ClassifierConfig:
    """What a batch depends on, all else at its default: trainings that differ elsewhere share a program."""
    names = ("batch_size", "synthetic_fraction", "max_shift", "crop_area", "flip")
    return ClassifierConfig(**{name: getattr(config, name) for name in names})


@partial(jax.jit, static_argnames="config")
def _draw_rows(config: ClassifierConfig, num_real: int, pool_size: int | None, key: jax.Array, step: int) -> Drawn:
    return draw_rows(config, num_real, pool_size, jax.random.fold_in(key, step))


@partial(jax.jit, static_argnames="config")
def _take_batch(
    config: ClassifierConfig, real: Examples, synthetic: Examples | None, drawn: Drawn, fold: jax.Array
) -> Examples:
    """The batch, of which the real images were drawn among a fold, rows int [n]."""
    return take_batch(config, real, synthetic, dataclasses.replace(drawn, real=fold[drawn.real]))


@partial(jax.jit, static_argnames="config")
def _augmentation(config: ClassifierConfig, pool_size: int | None, key: jax.Array, step: int) -> Drawn:
    """What augments the batch of a step, with rows that are nothing but counted: the compiler leaves their draw out."""
    drawn = draw_rows(config, 1, pool_size, jax.random.fold_in(key, step))
    return dataclasses.replace(drawn, real=jnp.zeros(drawn.real.shape, jnp.int32), synthetic=None)


@partial(jax.jit, static_argnames="config")
def _real_rows(
    config: ClassifierConfig, pool_size: int | None, key: jax.Array, num_real: int, steps: np.ndarray
) -> jax.Array:
    """Rows of the real images of several steps, int [n, B]."""
    draw = partial(draw_rows, config, num_real, pool_size)
    return jax.vmap(lambda step: draw(jax.random.fold_in(key, step)).real)(jnp.asarray(steps))


@partial(jax.jit, static_argnames="config")
def _synthetic_rows(config: ClassifierConfig, pool_size: int, key: jax.Array, steps: np.ndarray) -> jax.Array:
    """Rows of the synthetic images of several steps, int [n, B]."""
    draw = partial(draw_synthetic, config, pool_size)
    return jax.vmap(lambda step: draw(jax.random.fold_in(key, step)))(jnp.asarray(steps))


@partial(jax.jit, static_argnums=(0, 1))
def _draw_places(size: int, use: tuple[int, ...], key: jax.Array, number: int, steps: np.ndarray) -> jax.Array:
    """Places among so many examples for several steps, int [n, size]."""

    def draw(step: jax.Array) -> jax.Array:
        of_step = reduce(jax.random.fold_in, use, jax.random.fold_in(key, step))
        return jax.random.randint(of_step, (size,), 0, number)

    return jax.vmap(draw)(jnp.asarray(steps))


_join_batch = jax.jit(join_batch, static_argnames="config")
_take = jax.jit(Examples.take)
_split = jax.jit(lambda examples: split_batch(with_floats(examples)))
_with_floats = jax.jit(with_floats)
