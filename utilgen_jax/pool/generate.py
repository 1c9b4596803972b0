"""Fills a pool: prompt and seed of each image follow from its place in the pool, so that a broken-off run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.inputs import SampleInputs, make_sample_inputs
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.pool.storage import PoolRecord, PoolWriter
from utilgen_jax.runtime.sharding import to_host

# (condition of text, places in the pool int [B]) -> (condition, latents to start from, or None)
StartFrom = Callable[[Condition, np.ndarray], tuple[Condition, jax.Array | None]]


def plan_pool(
    class_prompts: Sequence[Sequence[str]],
    images_per_class: int | Sequence[int] | np.ndarray,
    seed: int,
    round_number: int,
    difficulty: tuple[float | np.ndarray, float] | None = None,
) -> list[PoolRecord]:
    """What to generate: classes in turn, each image with a seed of its own.

    Args:
        class_prompts: one prompt or more for each class, taken in turn.
        images_per_class: images of each class: one number for all, or K.
        seed: of the run.
        round_number: of generation, from 0; another round has other seeds.
        difficulty: mean (one for all, or K) and standard deviation of the normal distribution, clipped to [0, 1], from
            which each image's difficulty is asked; None: no difficulty is asked for.

    Returns:
        The records, without file names yet; a shorter plan begins a longer one.
    """
    num_classes = len(class_prompts)
    counts = np.broadcast_to(images_per_class, num_classes)
    number = num_classes * int(counts.max())
    seeds = np.random.default_rng([seed, round_number]).integers(0, 2**31, number)
    asked: list[float | None] = [None] * number
    if difficulty is not None:
        means = np.tile(np.broadcast_to(difficulty[0], num_classes), number // num_classes)
        drawn = np.random.default_rng([seed, round_number, 1]).normal(means, difficulty[1])
        asked = [round(float(value), 4) for value in np.clip(drawn, 0.0, 1.0)]
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
                    requested_difficulty=asked[index],
                    round=round_number,
                )
            )
    return records


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are generated.

    Attributes:
        scheduler: one of `SAMPLERS`, or 'checkpoint'.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance.
        negative_prompt: of the unconditional branch.
        image_size: pixels a side.
        batch_size: images at once; the last batch is filled up, so that all have one shape and compile once.
    """

    scheduler: str
    steps: int
    guidance_scale: float
    negative_prompt: str
    image_size: int
    batch_size: int


def generate_pool(
    generator: Generator,
    params: Params,
    writer: PoolWriter,
    records: Sequence[PoolRecord],
    adapter: Adapter,
    config: SamplingConfig,
    on_images: Callable[[int], None],
    *,
    start_from: StartFrom | None = None,
    refine: Callable[[Adapter, SampleInputs], Adapter] | None = None,
    strength: float = 1.0,
) -> None:
    """Generates the images that the writer does not hold yet and appends them.

    Args:
        generator, params, records, adapter, config, start_from, refine, strength: see `generate_batches`.
        writer: of the pool's folder; its length says where to go on.
        on_images: called with the number of finished images.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    done = len(writer)
    for images in generate_batches(
        generator,
        params,
        records,
        adapter,
        config,
        start_from=start_from,
        refine=refine,
        strength=strength,
        first=done,
    ):
        if jax.process_index() == 0:
            writer.append(images, records[done : done + len(images)])
        done += len(images)
        on_images(done)


def generate_batches(
    generator: Generator,
    params: Params,
    records: Sequence[PoolRecord],
    adapter: Adapter,
    config: SamplingConfig,
    *,
    start_from: StartFrom | None = None,
    refine: Callable[[Adapter, SampleInputs], Adapter] | None = None,
    strength: float = 1.0,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Generates records batch by batch.

    Args:
        generator: the checkpoint.
        params: its weights.
        records: what to generate, see `plan_pool`.
        adapter: what the generator was adapted by; `Adapter()` for the checkpoint as it is. With a difficulty encoder,
            each record says the difficulty that is asked for.
        config: how.
        start_from: what else the images start from; None: noise alone.
        refine: (adapter, sample inputs of a batch, a row each) -> the adapter for that batch; None: as it is.
        strength: the part of the way from noise that is walked by images that start from others, in (0, 1].
        first: the record to begin with.

    Yields:
        The images of each batch, float32 [B, H, W, 3] in [-1, 1]; B is `config.batch_size` or, at the end, less.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    batch_size = min(config.batch_size, len(records))
    for start in range(first, len(records), batch_size):
        places = np.minimum(np.arange(start, start + batch_size), len(records) - 1)
        batch = [records[place] for place in places]
        sample_inputs = make_sample_inputs(
            generator,
            params,
            [record.prompt or "" for record in batch],
            [record.label for record in batch],
            [record.seed or 0 for record in batch],
            config.image_size,
            rows=np.arange(batch_size),
            negative_prompt=config.negative_prompt,
        )
        if start_from is not None:
            condition, clean_latents = start_from(sample_inputs.condition, places)
            sample_inputs = dataclasses.replace(sample_inputs, condition=condition, clean_latents=clean_latents)
        if adapter.difficulty_encoder is not None:
            asked = _logits([record.requested_difficulty for record in batch])
            adapter = dataclasses.replace(adapter, difficulty_logits=asked)
        generated = generate_images(
            generator,
            params,
            adapter if refine is None else refine(adapter, sample_inputs),
            sample_inputs,
            num_steps=config.steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            num_differentiable_steps=None,
            strength=1.0 if sample_inputs.clean_latents is None else strength,
        )
        images = to_host(generated)[: len(records) - start]
        broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if broken.size:
            raise FloatingPointError(f"generator: image {start + broken[0]} of the pool holds NaN or infinity")
        yield images


def _logits(difficulties: Sequence[float | None]) -> jax.Array:
    """What the adapter's table holds for these; the ends of [0, 1] are infinitely far there and asked for nearly."""
    asked = np.array([0.5 if difficulty is None else difficulty for difficulty in difficulties], np.float32)
    return jax.scipy.special.logit(np.clip(asked, 1e-4, 1 - 1e-4))
