"""Generates a pool's images from its records; a run that was cut off continues at the first image that is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import jax
import numpy as np

from utilgen_jax.generator.adapter import Adapter, ClassAdapters, generate_images, with_text_encoder_lora
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs, make_sample_inputs
from utilgen_jax.generator.sampling import check_finite_images
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import PoolWriter
from utilgen_jax.runtime.distributed import wait_for_all
from utilgen_jax.runtime.sharding import own_rows, to_host
from utilgen_jax.runtime.working_folder import exchange

# (condition of text, places in the pool int [B]) -> (condition, latents to start from, or None)
ConditionOn = Callable[[Condition, np.ndarray], tuple[Condition, jax.Array | None]]
# (adapter, sample inputs of a batch, a row each) -> the adapter for that batch
RefineBatch = Callable[[Adapter, SampleInputs], Adapter]


def generate_pool(
    sd: StableDiffusion,
    writer: PoolWriter,
    records: Sequence[PoolRecord],
    adapter: Adapter | ClassAdapters,
    sampling: SamplingConfig,
    on_images: Callable[[int], None],
    *,
    condition_on: ConditionOn | None = None,
    refine: RefineBatch | None = None,
) -> None:
    """Generates the images that the writer does not hold yet and appends them.

    Args:
        sd, records, adapter, sampling, condition_on, refine: see `generate_batches`.
        writer: of the pool's folder; its length is the number of the first image to generate. Of several processes
            each writes what its own devices have generated.
        on_images: called with the number of finished images.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    for start, end, generated in _generate(
        sd, records, adapter, sampling, condition_on, refine, (len(writer), len(records))
    ):
        rows, images = own_rows(generated)
        mine = rows < end - start
        places, images = start + rows[mine], images[mine]
        check_finite_images(images, sd.architecture, int(places[0]) if len(places) else start)
        writer.append(images, [records[place] for place in places], places)
        on_images(end)
    writer.finish()


def open_pool(
    folder: Path, class_names: Sequence[str], is_sharded: bool = False, image_format: str = "png"
) -> PoolWriter:
    """Opens a pool to be continued, in every process.

    Opening removes what a run that was cut off left: the first process does, and before one appends all have opened.

    Args:
        folder: the pool's.
        class_names: K words.
        image_format: see `PoolWriter`.
        is_sharded: whether each of several processes appends, to a shard of its own; if not, the first one alone may.

    Raises:
        InputError: see `PoolWriter`.
    """
    is_first = jax.process_index() == 0
    if not is_first:
        exchange(folder)
    shard = jax.process_index() if is_sharded and jax.process_count() > 1 else None
    writer = PoolWriter(folder, class_names, shard, image_format)
    if is_first:
        exchange(folder)
    wait_for_all("every process has opened the pool")
    return writer


def generate_batches(
    sd: StableDiffusion,
    records: Sequence[PoolRecord],
    adapter: Adapter | ClassAdapters,
    sampling: SamplingConfig,
    *,
    condition_on: ConditionOn | None = None,
    refine: RefineBatch | None = None,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[np.ndarray]:
    """Generates records batch by batch; the last batch is filled up, so that all have one shape and compile once.

    Args:
        sd: the checkpoint.
        records: the images to generate, see `pool.plan.plan_pool`.
        adapter: `Adapter()` for the checkpoint as it is. With a difficulty encoder, each record has a requested
            difficulty. Where classes have adapters of their own, a batch ends where the class changes: records should
            stand class by class.
        sampling: its strength is that of images that start from others; images from noise have strength 1.
        condition_on: adds images to the condition of a batch; None: text alone.
        refine: replaces the adapter of each batch; None: one adapter for all.
        first: the record to begin with.
        stop: the record to end before; None: all. It leaves the size of the batches as it is.

    Yields:
        The images of each batch, float32 [B, H, W, 3] in [-1, 1]; B is at most `sampling.batch_size`.

    Raises:
        FloatingPointError: an image is not finite; names the first one's place.
    """
    span = first, len(records) if stop is None else stop
    for start, end, generated in _generate(sd, records, adapter, sampling, condition_on, refine, span):
        images = to_host(generated)[: end - start]
        check_finite_images(images, sd.architecture, start)
        yield images


def _generate(
    sd: StableDiffusion,
    records: Sequence[PoolRecord],
    adapter: Adapter | ClassAdapters,
    sampling: SamplingConfig,
    condition_on: ConditionOn | None,
    refine: RefineBatch | None,
    span: tuple[int, int],
) -> Iterator[tuple[int, int, jax.Array]]:
    """Beginning and end of each batch, and its images on the devices, filled up behind them."""
    batch_size = min(sampling.batch_size, len(records))
    from_noise = dataclasses.replace(sampling, strength=1.0)
    encoder, encodes = sd, None
    for start, end, used in _parts(records, adapter, span, batch_size):
        if used is not encodes:
            encoder, encodes = with_text_encoder_lora(sd, used), used
        places = np.minimum(np.arange(start, start + batch_size), end - 1)
        batch = [records[place] for place in places]
        sample_inputs = make_sample_inputs(
            encoder,
            [record.prompt or "" for record in batch],
            [record.label for record in batch],
            [record.seed or 0 for record in batch],
            sampling,
            rows=np.arange(batch_size),
        )
        if condition_on is not None:
            condition, clean_latents = condition_on(sample_inputs.condition, places)
            sample_inputs = dataclasses.replace(sample_inputs, condition=condition, clean_latents=clean_latents)
        if used.knows_difficulty:
            logits = _logits([record.requested_difficulty for record in batch])
            used = dataclasses.replace(used, difficulty_logits=logits)
        yield (
            start,
            end,
            generate_images(
                sd,
                used if refine is None else refine(used, sample_inputs),
                sample_inputs,
                from_noise if sample_inputs.clean_latents is None else sampling,
                num_differentiable_steps=None,
            ),
        )


def _parts(
    records: Sequence[PoolRecord], adapter: Adapter | ClassAdapters, span: tuple[int, int], batch_size: int
) -> Iterator[tuple[int, int, Adapter]]:
    """Beginning, end and adapter of each batch of the records of a span."""
    first, last = span
    if isinstance(adapter, Adapter):
        for start in range(first, last, batch_size):
            yield start, min(start + batch_size, last), adapter
        return
    for label, of_class in groupby(range(first, last), lambda place: records[place].label):
        places, of_label = list(of_class), adapter(label)
        for start in range(places[0], places[-1] + 1, batch_size):
            yield start, min(start + batch_size, places[-1] + 1), of_label


def _logits(difficulties: Sequence[float | None]) -> jax.Array:
    """The adapter's `difficulty_logits` for these; 0 and 1 would be infinite and are moved inwards by 1e-4."""
    requested = np.array([0.5 if difficulty is None else difficulty for difficulty in difficulties], np.float32)
    return jax.scipy.special.logit(np.clip(requested, 1e-4, 1 - 1e-4))
