"""What the generator has learnt of difficulty, as two pictures (difficulty-controlled diffusion, arXiv 2411.18109)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.policy import Policy, paint
from utilgen_jax.generator.requests import Requests, make_requests
from utilgen_jax.parallel import to_host
from utilgen_jax.report.contact_sheet import contact_sheet

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
HARD, HARD_PICTURES = 0.9, 5  # of the difficulty token alone, and how many of each class
MAX_CLASSES = 20
_SIDE = 96  # pixels of a picture on the sheets, about


def difficulty_sheets(
    generator: Generator,
    params: Params,
    policy: Policy,
    config: ConfigDict,
    class_names: tuple[str, ...],
    prompts: list[str],
) -> dict[str, Image.Image]:
    """Paints the sheets "difficulty_sweep" and "hard_factors".

    In the first, rows are classes and columns the difficulty that is asked for, from one noise in each row. The second
    is generated from the difficulty token alone, without the class's words: what is hard about each class.

    Args:
      generator: the checkpoint.
      params: its weights.
      policy: with a difficulty encoder.
      config: of the run.
      class_names: K words; the first `MAX_CLASSES` are shown.
      prompts: one a class.
    """
    shown = range(min(len(class_names), MAX_CLASSES))

    def without_words(requests: Requests) -> Requests:
        condition = requests.condition
        wordless = dataclasses.replace(condition, prompt_embeds=condition.negative_prompt_embeds)
        return dataclasses.replace(requests, condition=wordless)

    # name -> what is asked in each column, its title, the noise in it, what becomes of the words
    sheets: dict[str, tuple[list[float], list[str], list[int], Callable[[Requests], Requests]]] = {
        "difficulty_sweep": ([*SWEEP], [f"s = {value}" for value in SWEEP], [0] * len(SWEEP), lambda asked: asked),
        "hard_factors": ([HARD] * HARD_PICTURES, [], [*range(HARD_PICTURES)], without_words),
    }
    painted = {}
    for name, (asked, titles, seeds, change) in sheets.items():
        cells = [(label, column) for label in shown for column in range(len(asked))]
        images = paint_difficulties(
            generator,
            params,
            policy,
            config,
            prompts=[prompts[label] for label, _ in cells],
            labels=[label for label, _ in cells],
            seeds=[1000 * label + seeds[column] for label, column in cells],
            asked=[asked[column] for _, column in cells],
            change=change,
        )
        painted[name] = contact_sheet(
            to_uint8(images),
            len(asked),
            scale=max(_SIDE // images.shape[1], 1),
            row_titles=[class_names[label] for label in shown],
            column_titles=titles,
        )
    return painted


def paint_difficulties(
    generator: Generator,
    params: Params,
    policy: Policy,
    config: ConfigDict,
    prompts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    seeds: Sequence[int] | np.ndarray,
    asked: Sequence[float] | np.ndarray,
    change: Callable[[Requests], Requests] = lambda requests: requests,
) -> np.ndarray:
    """Paints N pictures of any difficulty, in batches of one shape: float32 [N, H, W, 3] in [-1, 1].

    Args:
      generator: the checkpoint.
      params: its weights.
      policy: with a difficulty encoder.
      config: of the run.
      prompts: N.
      labels: N, their classes.
      seeds: N, 0 .. 2**31 - 1.
      asked: N, each in (0, 1).
      change: what becomes of the requests before they are painted.
    """
    settings, number = config.generator, len(labels)
    size, parts = min(settings.batch_size, number), []
    for start in range(0, number, size):
        places = np.minimum(np.arange(start, start + size), number - 1)
        requests = make_requests(
            generator,
            params,
            [prompts[place] for place in places],
            [labels[place] for place in places],
            [seeds[place] for place in places],
            settings.image_size,
            rows=np.arange(size),
            negative_prompt=settings.negative_prompt,
        )
        logits = jax.scipy.special.logit(jnp.asarray([asked[place] for place in places], jnp.float32))
        images = paint(
            generator,
            params,
            dataclasses.replace(policy, difficulty_logits=logits),
            change(requests),
            num_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
            num_differentiable_steps=None,
        )
        parts.append(to_host(images)[: number - start])
    return np.concatenate(parts)
