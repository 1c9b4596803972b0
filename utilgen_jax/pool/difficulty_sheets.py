"""Two sheets of images that show what a difficulty encoder has learnt (arXiv 2411.18109)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.pool.generate import ConditionOn, generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.report.contact_sheet import contact_sheet

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
HARD, HARD_IMAGES = 0.9, 5  # of the difficulty token alone, and how many of each class
MAX_CLASSES = 20
_SIDE = 96  # pixels of an image on the sheets, about


def difficulty_sheets(
    sd: StableDiffusion,
    adapter: Adapter,
    sampling: SamplingConfig,
    class_names: tuple[str, ...],
    prompts: list[str],
) -> dict[str, Image.Image]:
    """Generates the sheets "difficulty_sweep" and "hard_factors".

    In the first, rows are classes and columns the requested difficulty, from one noise in each row. The second
    is generated from the difficulty token alone, without the class prompt: the hard features of each class.

    Args:
        sd: the checkpoint.
        adapter: with a difficulty encoder.
        sampling: of all images.
        class_names: K words; the first `MAX_CLASSES` are shown.
        prompts: one a class.
    """
    shown = range(min(len(class_names), MAX_CLASSES))

    def without_words(condition: Condition, places: np.ndarray) -> tuple[Condition, None]:
        condition = dataclasses.replace(condition, prompt_embeds=condition.negative_prompt_embeds)
        if condition.negative_class_labels is not None:  # with pooled text states
            condition = dataclasses.replace(condition, class_labels=condition.negative_class_labels)
        return condition, None

    # name -> each column's requested difficulty, its title, its seed, and the change of the condition
    sheets: dict[str, tuple[list[float], list[str], list[int], ConditionOn | None]] = {
        "difficulty_sweep": ([*SWEEP], [f"s = {value}" for value in SWEEP], [0] * len(SWEEP), None),
        "hard_factors": ([HARD] * HARD_IMAGES, [], [*range(HARD_IMAGES)], without_words),
    }
    generated = {}
    for name, (requested, titles, seeds, condition_on) in sheets.items():
        records = [
            PoolRecord(label=label, prompt=prompts[label], seed=1000 * label + seed, requested_difficulty=value)
            for label in shown
            for value, seed in zip(requested, seeds, strict=True)
        ]
        images = np.concatenate([*generate_batches(sd, records, adapter, sampling, condition_on=condition_on)])
        generated[name] = contact_sheet(
            to_uint8(images),
            len(requested),
            scale=max(_SIDE // images.shape[1], 1),
            row_titles=[class_names[label] for label in shown],
            column_titles=titles,
        )
    return generated
