"""Plans a pool: prompt, seed and difficulty of each image follow from its place in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from utilgen_jax.pool.records import PoolRecord


def plan_pool(
    class_prompts: Sequence[Sequence[str]],
    images_per_class: int | Sequence[int] | np.ndarray,
    seed: int | tuple[int, ...],
    round_number: int,
    difficulty: tuple[float | Sequence[float] | np.ndarray, float] | None = None,
) -> list[PoolRecord]:
    """Plans a pool: classes in turn, each image with a seed of its own.

    Args:
        class_prompts: one prompt or more for each class, taken in turn.
        images_per_class: images of each class: one number for all, or K.
        seed: of the run; or several numbers that are the seed together.
        round_number: of generation, from 0; each round has other seeds.
        difficulty: mean (one for all, or K) and standard deviation of the normal distribution, clipped to [0, 1], of
            the requested difficulties; None: none is requested.

    Returns:
        The records, without file names yet; a shorter plan begins a longer one.
    """
    num_classes = len(class_prompts)
    counts = np.broadcast_to(images_per_class, num_classes)
    entropy = [*([seed] if isinstance(seed, int) else seed), round_number]
    number = num_classes * int(counts.max())
    seeds = np.random.default_rng(entropy).integers(0, 2**31, number)
    requested: list[float | None] = [None] * number
    if difficulty is not None:
        means = np.tile(np.broadcast_to(difficulty[0], num_classes), number // num_classes)
        drawn = np.random.default_rng([*entropy, 1]).normal(means, difficulty[1])
        requested = [round(float(value), 4) for value in np.clip(drawn, 0.0, 1.0)]
    records = []
    for index in range(number):
        place, label = divmod(index, num_classes)
        if place < counts[label]:
            prompts = class_prompts[label]
            records.append(
                PoolRecord(
                    label=label,
                    prompt=prompts[place % len(prompts)],
                    seed=int(seeds[index]),
                    requested_difficulty=requested[index],
                    round=round_number,
                )
            )
    return records


def in_rounds(records: Sequence[PoolRecord], fractions: Sequence[float]) -> list[list[PoolRecord]]:
    """A pool that grows: its records after each round, each with the number of the round that adds it.

    Args:
        records: of the whole pool.
        fractions: of the pool that are there after each round, rising to 1.
    """
    sizes = [max(round(fraction * len(records)), 1) for fraction in fractions]
    rounds = np.searchsorted(sizes, np.arange(len(records)), side="right")
    numbered = [replace(record, round=int(number)) for record, number in zip(records, rounds, strict=True)]
    return [numbered[:size] for size in sizes]


def common_beginning(first: Sequence[PoolRecord], second: Sequence[PoolRecord]) -> int:
    """Returns with how many images two pools begin alike: of one class, prompt, seed and requested difficulty."""

    def requested(record: PoolRecord) -> tuple[object, ...]:
        return record.label, record.prompt, record.seed, record.requested_difficulty, record.round

    pairs = zip(first, second, strict=False)
    return next(
        (place for place, pair in enumerate(pairs) if requested(pair[0]) != requested(pair[1])),
        min(len(first), len(second)),
    )
