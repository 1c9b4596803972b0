"""From a row's way of generation to its pool: prompts, what the generator is adapted to, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax import data, parallel, report
from utilgen_jax.captions import caption_pictures
from utilgen_jax.data.images import resize, set_channels, to_float
from utilgen_jax.data.long_tail import fill_counts
from utilgen_jax.generator.adaptation import AdaptationRecipe, AdaptationSet, adapt
from utilgen_jax.generator.augmented_conditions import find_way, plan_sources
from utilgen_jax.generator.checkpoint import Generator, load_generator
from utilgen_jax.generator.conditioning import Condition, encode_prompts
from utilgen_jax.generator.picture_conditions import condition_on_pictures
from utilgen_jax.generator.policy import Policy
from utilgen_jax.generator.pool_generation import StartFrom, generate_pool, plan_pool
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.job import ADAPTATION_KEY, SOURCES_KEY, Job, recipe_of
from utilgen_jax.methods import PLAIN, Generation
from utilgen_jax.results import log_stage

Params = Any


def make_pool(
    job: Job,
    metrics: report.MetricsWriter,
    generation: Generation,
    plain: data.Pool | None,
    difficulties: tuple[np.ndarray, np.ndarray] | None,
) -> data.Pool:
    """The synthetic pool of a way of generation; one that was broken off is gone on with.

    Args:
      job: the run.
      metrics: its writer.
      generation: how.
      plain: the pool of the checkpoint as it is, beside which the generator is adapted; None where it is not.
      difficulties: of the shots, by classifiers that were not trained on them, and of the plain pool, float32 [N] and
        [M]; None where none is learnt.
    """
    config, folder = job.config, job.pool_folder(generation)
    asks_difficulty = generation.adaptation == "difficulty"
    records = plan_pool(
        _prompts(job, generation),
        _images_per_class(job),
        config.seed,
        round_number=0,
        difficulty=(config.difficulty.mean, config.difficulty.deviation) if asks_difficulty else None,
    )
    load = cache(lambda: _load(job))
    policy = Policy()
    if generation.adaptation != "none":
        assert plain is not None
        policy = _adapt(job, metrics, generation, load, plain, difficulties)

    def compute() -> dict[str, np.ndarray]:
        writer = data.PoolWriter(folder, job.split.real.class_names)
        if len(writer) < len(records):
            generator, params = load()
            start_from = None
            if generation.start == "shots":
                start_from = _start_from_shots(job, generator, params, records)
            title = "generate" if generation == PLAIN else f"generate, {generation.name}"
            progress = report.Progress(title, len(records), "image", initial=len(writer), enabled=job.is_first)
            with progress:
                generate_pool(
                    generator,
                    params,
                    writer,
                    records,
                    policy,
                    start_from,
                    scheduler=config.generator.scheduler,
                    num_steps=config.generator.steps,
                    guidance_scale=config.generator.guidance_scale,
                    negative_prompt=config.generator.negative_prompt,
                    image_size=config.generator.image_size,
                    strength=config.conditioning.strength,
                    batch_size=config.generator.batch_size,
                    on_images=progress.update,
                )
        return {"num_images": np.array(len(records))}

    job.stages.run(f"pool_{generation.name}", compute)
    return data.read_pool(folder, job.split.real.class_names)


def _load(job: Job) -> tuple[Generator, Params]:
    assert job.checkpoint is not None
    dtype = jnp.dtype(job.config.generator.dtype)
    return load_generator(job.checkpoint, dtype, sharding_for=parallel.sharding_for(job.mesh))


def _images_per_class(job: Job) -> int | np.ndarray:
    goal = job.config.pool.fill_to
    counts = np.bincount(job.split.real.labels, minlength=job.num_classes)
    return fill_counts(counts, goal) if goal else job.config.pool.images_per_class


def _prompts(job: Job, generation: Generation) -> list[list[str]]:
    """The prompts of each class: one, or one a shot."""
    if generation.prompt == "template":
        return [[prompt] for prompt in job.prompts]
    real = job.split.real
    # Every process makes its own: the same captions, in a file that nobody else writes.
    name = "captions.jsonl" if job.is_first else f"captions.{jax.process_index()}.jsonl"
    file = (job.shared.stages if job.shared else job.workdir) / name
    with report.Progress("captions", len(real), "image", enabled=job.is_first) as progress:
        captions = caption_pictures(job.config.captions.source, real, file, progress.update)
    words = [real.class_names[label] for label in real.labels]
    prompts = data.caption_prompts(f"{job.config.generator.prompt}, {{caption}}", words, captions)
    return [
        [prompt for prompt, label in zip(prompts, real.labels, strict=True) if label == each]
        for each in range(job.num_classes)
    ]


def _shots(job: Job) -> Any:
    """The shots as the generator sees pictures: float32 [N, S, S, 3] in [-1, 1]."""
    return set_channels(resize(to_float(job.split.real.images), job.config.generator.image_size), 3)


def _start_from_shots(job: Job, generator: Generator, params: Params, records: Sequence[data.PoolRecord]) -> StartFrom:
    """Starts each picture from two shots of its class, in the way of the config."""
    way = find_way(job.config.conditioning.way, generator.image_encoder is not None)
    real = job.split.real
    wanted, seeds = (np.array(values) for values in zip(*[(each.label, each.seed) for each in records], strict=True))
    sources = plan_sources(real.labels, wanted, np.random.default_rng([job.config.seed, SOURCES_KEY]))
    shots = _shots(job)

    def start_from(condition: Condition, places: np.ndarray) -> tuple[Condition, jax.Array | None]:
        first, second = (shots[sources[places, column]] for column in (0, 1))
        return condition_on_pictures(generator, params, condition, way, first, second, seeds[places])

    return start_from


def _adapt(
    job: Job,
    metrics: report.MetricsWriter,
    generation: Generation,
    load: Callable[[], tuple[Generator, Params]],
    plain: data.Pool,
    difficulties: tuple[np.ndarray, np.ndarray] | None,
) -> Policy:
    """The policy that was fitted to the shots, and to plain pictures beside them."""
    name = f"adaptation_{generation.name}"
    recipe = recipe_of(AdaptationRecipe, job.config.adaptation)
    of_shots, of_plain = difficulties or (None, None)

    def pictures(images: Any, labels: np.ndarray, known: np.ndarray | None) -> AdaptationSet:
        generator, params = load()
        batch_size = job.config.generator.batch_size
        latents = [
            encode_to_latents(generator, params, jnp.asarray(images[start : start + batch_size]))
            for start in range(0, len(labels), batch_size)
        ]
        hard = None if known is None else jnp.asarray(known)
        return parallel.replicate(AdaptationSet(jnp.concatenate(latents), jnp.asarray(labels), hard))

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        with log_stage(metrics, name, recipe.steps, job.config.log_every_steps) as on_step:
            policy = adapt(
                generator,
                params,
                encode_prompts(generator, params, job.prompts),
                pictures(_shots(job), job.split.real.labels, of_shots),
                pictures(to_float(plain.images), plain.labels, of_plain),
                recipe,
                job.key(ADAPTATION_KEY),
                on_step,
            )
        trained = {key: value for key, value in serialization.to_state_dict(policy).items() if value is not None}
        return {path: parallel.to_host(leaf) for path, leaf in flatten_dict(trained, sep="/").items()}

    arrays = job.stages.run(name, compute)
    return Policy(**unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/"))
