"""The images of the joint update's steps, drawn before them: from memory, or read for the steps to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from utilgen_jax.bilevel.examples import Examples, count_classes
from utilgen_jax.classifier.batches import draw_ahead, make_draw
from utilgen_jax.data.splits import Fold
from utilgen_jax.joint.program import JointBatch, JointProgram
from utilgen_jax.joint.step import stack


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

    updates = sum(_is_outer(program, number, step) for step in range(joint.steps))
    held_out, size = [fold.validation_indices for fold in folds], program.valuation.validation_batch_size
    draw_held_out = draw_ahead(real, held_out, size, jax.random.fold_in(key, 1), range(updates))
    inner_steps = range(joint.inner_steps * updates)
    draw_shots = draw_ahead(real, trains, joint.num_generated, jax.random.fold_in(key, 2), inner_steps)

    def draw_inner(draw: Callable[[int], Examples], update: int) -> Examples:
        """Draws for the inner steps of an update."""
        if joint.inner_steps == 1:
            return draw(update)
        return _stack([draw(joint.inner_steps * update + inner) for inner in range(joint.inner_steps)])

    def batch(step: int) -> JointBatch:
        given = JointBatch(draw_inner(draw, step), class_counts[step % number])
        if not _is_outer(program, number, step):
            return given
        update = step // (number * joint.outer_every) * number + step % number
        shots = draw_inner(draw_shots, update) if program.has_coverage else None
        return dataclasses.replace(given, validation=draw_held_out(update), shots=shots)

    return batch


_stack = jax.jit(stack)


def _is_outer(program: JointProgram, num_folds: int, step: int) -> bool:
    return step // num_folds % program.joint.outer_every == 0
