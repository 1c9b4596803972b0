"""Generates a pool's images from its records; a run that was cut off continues at the first image that is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs, make_sample_inputs
from utilgen_jax.generator.sampling import check_finite_images
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.pool.storage import PoolRecord, PoolWriter
from utilgen_jax.runtime.sharding import to_host

# (condition of text, places in the pool int [B]) -> (condition, latents to start from, or None)
ConditionOn = Callable[[Condition, np.ndarray], tuple[Condition, jax.Array | None]]
# (adapter, sample inputs of a batch, a row each) -> the adapter for that batch
RefineBatch = Callable[[Adapter, SampleInputs], Adapter]


def generate_pool(
    sd: StableDiffusion,
    writer: PoolWriter,
    records: Sequence[PoolRecord],
    adapter: Adapter,
    sampling: SamplingConfig,
    on_images: Callable[[int], None],
    *,
    condition_on: ConditionOn | None = None,
    refine: RefineBatch | None = None,
) -> None:
    """Generates the images that the writer does not hold yet and appends them.

    Args:
        sd, records, adapter, sampling, condition_on, refine: see `generate_batches`.
        writer: of the pool's folder; its length is the number of the first image to generate.
        on_images: called with the number of finished images.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    done = len(writer)
    batches = generate_batches(sd, records, adapter, sampling, condition_on=condition_on, refine=refine, first=done)
    for images in batches:
        if jax.process_index() == 0:
            writer.append(images, records[done : done + len(images)])
        done += len(images)
        on_images(done)


def generate_batches(
    sd: StableDiffusion,
    records: Sequence[PoolRecord],
    adapter: Adapter,
    sampling: SamplingConfig,
    *,
    condition_on: ConditionOn | None = None,
    refine: RefineBatch | None = None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Generates records batch by batch; the last batch is filled up, so that all have one shape and compile once.

    Args:
        sd: the checkpoint.
        records: the images to generate, see `pool.plan.plan_pool`.
        adapter: `Adapter()` for the checkpoint as it is. With a difficulty encoder, each record has a requested
            difficulty.
        sampling: its strength is that of images that start from others; images from noise have strength 1.
        condition_on: adds images to the condition of a batch; None: text alone.
        refine: replaces the adapter of each batch; None: one adapter for all.
        first: the record to begin with.

    Yields:
        The images of each batch, float32 [B, H, W, 3] in [-1, 1]; B is `sampling.batch_size` or, at the end, less.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    batch_size = min(sampling.batch_size, len(records))
    from_noise = dataclasses.replace(sampling, strength=1.0)
    for start in range(first, len(records), batch_size):
        places = np.minimum(np.arange(start, start + batch_size), len(records) - 1)
        batch = [records[place] for place in places]
        sample_inputs = make_sample_inputs(
            sd,
            [record.prompt or "" for record in batch],
            [record.label for record in batch],
            [record.seed or 0 for record in batch],
            sampling,
            rows=np.arange(batch_size),
        )
        if condition_on is not None:
            condition, clean_latents = condition_on(sample_inputs.condition, places)
            sample_inputs = dataclasses.replace(sample_inputs, condition=condition, clean_latents=clean_latents)
        if adapter.knows_difficulty:
            logits = _logits([record.requested_difficulty for record in batch])
            adapter = dataclasses.replace(adapter, difficulty_logits=logits)
        generated = generate_images(
            sd,
            adapter if refine is None else refine(adapter, sample_inputs),
            sample_inputs,
            from_noise if sample_inputs.clean_latents is None else sampling,
            num_differentiable_steps=None,
        )
        images = to_host(generated)[: len(records) - start]
        check_finite_images(images, start)
        yield images


def _logits(difficulties: Sequence[float | None]) -> jax.Array:
    """The adapter's `difficulty_logits` for these; 0 and 1 would be infinite and are moved inwards by 1e-4."""
    requested = np.array([0.5 if difficulty is None else difficulty for difficulty in difficulties], np.float32)
    return jax.scipy.special.logit(np.clip(requested, 1e-4, 1 - 1e-4))
