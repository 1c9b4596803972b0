"""What the generator has learnt of difficulty, as two images (difficulty-controlled diffusion, arXiv 2411.18109)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.pool.generate import SamplingConfig, StartFrom, generate_batches
from utilgen_jax.pool.storage import PoolRecord
from utilgen_jax.report.contact_sheet import contact_sheet

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
HARD, HARD_IMAGES = 0.9, 5  # of the difficulty token alone, and how many of each class
MAX_CLASSES = 20
_SIDE = 96  # pixels of an image on the sheets, about


def difficulty_sheets(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    config: SamplingConfig,
    class_names: tuple[str, ...],
    prompts: list[str],
) -> dict[str, Image.Image]:
    """Generates the sheets "difficulty_sweep" and "hard_factors".

    In the first, rows are classes and columns the difficulty that is asked for, from one noise in each row. The second
    is generated from the difficulty token alone, without the class's words: what is hard about each class.

    Args:
        generator: the checkpoint.
        params: its weights.
        adapter: with a difficulty encoder.
        config: how images are generated.
        class_names: K words; the first `MAX_CLASSES` are shown.
        prompts: one a class.
    """
    shown = range(min(len(class_names), MAX_CLASSES))

    def without_words(condition: Condition, places: np.ndarray) -> tuple[Condition, None]:
        return dataclasses.replace(condition, prompt_embeds=condition.negative_prompt_embeds), None

    # name -> what is asked in each column, its title, the noise in it, what becomes of the words
    sheets: dict[str, tuple[list[float], list[str], list[int], StartFrom | None]] = {
        "difficulty_sweep": ([*SWEEP], [f"s = {value}" for value in SWEEP], [0] * len(SWEEP), None),
        "hard_factors": ([HARD] * HARD_IMAGES, [], [*range(HARD_IMAGES)], without_words),
    }
    generated = {}
    for name, (asked, titles, seeds, start_from) in sheets.items():
        records = [
            PoolRecord(label=label, prompt=prompts[label], seed=1000 * label + seed, requested_difficulty=value)
            for label in shown
            for value, seed in zip(asked, seeds, strict=True)
        ]
        images = np.concatenate([*generate_batches(generator, params, records, adapter, config, start_from=start_from)])
        generated[name] = contact_sheet(
            to_uint8(images),
            len(asked),
            scale=max(_SIDE // images.shape[1], 1),
            row_titles=[class_names[label] for label in shown],
            column_titles=titles,
        )
    return generated
