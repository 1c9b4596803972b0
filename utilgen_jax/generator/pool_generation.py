"""Fills a pool: prompt and seed of each picture follow from its place in the pool, so that a broken-off run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from utilgen_jax.data.pool import PoolRecord, PoolWriter
from utilgen_jax.generator.checkpoint import Generator, Params
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.sampling import initial_latents, sample, step_keys
from utilgen_jax.parallel import to_host


def plan_pool(class_prompts: Sequence[str], images_per_class: int, seed: int, round_number: int) -> list[PoolRecord]:
    """What to generate: classes in turn, each picture with a seed of its own.

    Args:
      class_prompts: one prompt a class.
      images_per_class: pictures of each.
      seed: of the run.
      round_number: of generation, from 0; another round has other seeds.

    Returns:
      K · images_per_class records, without file names yet.
    """
    number = len(class_prompts) * images_per_class
    seeds = np.random.default_rng([seed, round_number]).integers(0, 2**31, number)
    return [
        PoolRecord(
            label=index % len(class_prompts),
            prompt=class_prompts[index % len(class_prompts)],
            seed=int(seeds[index]),
            round=round_number,
        )
        for index in range(number)
    ]


def generate_pool(
    generator: Generator,
    params: Params,
    writer: PoolWriter,
    records: Sequence[PoolRecord],
    *,
    scheduler: str,
    num_steps: int,
    guidance_scale: float,
    negative_prompt: str,
    image_size: int,
    batch_size: int,
    on_images: Callable[[int], None],
) -> None:
    """Generates the pictures that the writer does not hold yet and appends them.

    Args:
      generator: the checkpoint.
      params: its weights.
      writer: of the pool's folder; its length says where to go on.
      records: the whole pool, see `plan_pool`.
      scheduler: one of `SAMPLERS`, or 'checkpoint'.
      num_steps: denoising steps.
      guidance_scale: of classifier-free guidance.
      negative_prompt: of the unconditional branch.
      image_size: pixels a side.
      batch_size: pictures at once; the last batch is filled up, so that all have one shape and compile once.
      on_images: called with the number of finished pictures.

    Raises:
      FloatingPointError: a picture is not finite; names the first one's place.
    """
    batch_size = min(batch_size, len(records))
    for start in range(len(writer), len(records), batch_size):
        batch = list(records[start : start + batch_size])
        filled = batch + batch[-1:] * (batch_size - len(batch))
        condition = text_condition(generator, params, [record.prompt or "" for record in filled], negative_prompt)
        seeds = np.array([record.seed for record in filled])
        images = sample(
            generator,
            params,
            condition,
            initial_latents(generator, seeds, image_size),
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            keys=step_keys(seeds),
        )
        images = to_host(images)[: len(batch)]
        broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if broken.size:
            raise FloatingPointError(f"generator: picture {start + broken[0]} of the pool holds NaN or infinity")
        if jax.process_index() == 0:
            writer.append(images, batch)
        on_images(start + len(batch))
