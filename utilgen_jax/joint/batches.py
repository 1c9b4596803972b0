"""The images of the joint update's steps, drawn before them: from memory, or read for the steps to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.classifier.batches import draw_ahead, make_draw
from utilgen_jax.data.splits import Fold
from utilgen_jax.joint.program import JointBatch, JointProgram


def make_batches(
    program: JointProgram, real: Examples, pool: Examples, folds: Sequence[Fold], key: jax.Array
) -> Callable[[int], JointBatch]:
    """Returns what makes the batch of a step, called for one step after the other, from any on.

    Args:
        program: sizes, and every how many steps of a fold the outer level is updated.
        real: the shots, in memory or streamed.
        pool: synthetic images, the same.
        folds: of the shots, which take their turns.
        key: PRNG key.
    """
    joint, number = program.joint, len(folds)
    # Each inner step draws for itself, from the fold of its update.
    trains = [fold.train_indices for fold in folds for _ in range(joint.inner_steps)]
    class_counts = [count_classes(real.take(fold.train_indices)) for fold in folds]
    config = dataclasses.replace(program.config, augmentation="none")
    draw = make_draw(config, real, pool, jax.random.fold_in(key, 0), range(joint.inner_steps * joint.steps), trains)

    def key_of(use: int) -> Callable[[jax.Array], jax.Array]:
        return lambda step: jax.random.fold_in(jax.random.fold_in(key, use), step)

    updates = sum(_is_outer(program, number, step) for step in range(joint.steps))
    held_out = [fold.validation_indices for fold in folds]
    draw_held_out = draw_ahead(real, held_out, program.valuation.validation_batch_size, key_of(1), range(updates))
    draw_shots = draw_ahead(real, trains, joint.num_generated, key_of(2), range(joint.inner_steps * updates))

    def stack(draw: Callable[[int], Any], place: int) -> Any:
        """Of the inner steps of an update."""
        if joint.inner_steps == 1:
            return draw(place)
        parts = [draw(joint.inner_steps * place + inner) for inner in range(joint.inner_steps)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

    def batch(step: int) -> JointBatch:
        given = JointBatch(stack(draw, step), class_counts[step % number])
        if not _is_outer(program, number, step):
            return given
        update = step // (number * joint.outer_every) * number + step % number
        shots = stack(draw_shots, update) if program.has_coverage else None
        return dataclasses.replace(given, validation=draw_held_out(update), shots=shots)

    return batch


def _is_outer(program: JointProgram, num_folds: int, step: int) -> bool:
    return step // num_folds % program.joint.outer_every == 0
