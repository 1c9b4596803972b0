"""From a row's way of generation to its pool: prompts, what the generator is adapted to, images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax import data, report
from utilgen_jax.data.images import resize, set_channels, to_float
from utilgen_jax.data.long_tail import fill_counts
from utilgen_jax.experiment.results import log_stage
from utilgen_jax.experiment.setup import (
    ADAPTATION_KEY,
    INVERSION_KEY,
    PHRASES_KEY,
    SOURCES_KEY,
    Job,
    asked_of_classes,
    config_of,
)
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import Condition, encode_prompts
from utilgen_jax.generator.finetune.denoising import DenoisingConfig, DenoisingSet
from utilgen_jax.generator.finetune.lora import LoraConfig, train_lora
from utilgen_jax.generator.finetune.textual_inversion import class_tokens, initial_embeds, learn_tokens
from utilgen_jax.generator.image_conditioning import condition_on_images
from utilgen_jax.generator.image_mixing import find_way, plan_sources
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, load_generator
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.generator.tokens import add_tokens
from utilgen_jax.methods import PLAIN, Generation
from utilgen_jax.pool.difficulty_sheets import difficulty_sheets
from utilgen_jax.pool.generate import SamplingConfig, StartFrom, generate_pool, plan_pool
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.captions import caption_labelled_images
from utilgen_jax.runtime import sharding
from utilgen_jax.valuation.difficulty import balanced_resample

Params = Any
Load = Callable[[], tuple[Generator, Params]]


@dataclasses.dataclass(frozen=True)
class Made:
    """A pool, and what the generator that made it had learnt.

    Attributes:
        pool: the images.
        adapter: what the generator was adapted by.
        round: of generation, from 0.
        soft_labels: what several classifiers say of the images, float32 [N, K], where they were asked for the choice.
    """

    pool: data.Pool
    adapter: Adapter
    round: int = 0
    soft_labels: np.ndarray | None = None


def make_pool(
    job: Job,
    metrics: report.MetricsWriter,
    load: Load,
    generation: Generation,
    plain: data.Pool | None,
    difficulties: tuple[np.ndarray, np.ndarray] | None,
) -> Made:
    """The synthetic pool of a way of generation that refines no other; one that was broken off is gone on with.

    Args:
        job: the run.
        metrics: its writer.
        load: reads the checkpoint, see `loader`, with the words that the prompts need.
        generation: how.
        plain: the pool of the checkpoint as it is, beside which the generator is adapted; None where it is not.
        difficulties: of the shots and of the plain pool, by classifiers that were not trained on them, float32 [N] and
            [M]; None where none is learnt.
    """
    config = job.config
    asks_difficulty = generation.adaptation == "difficulty"
    records = plan_pool(
        prompts_of(job, generation),
        images_per_class(job, generation),
        config.seed,
        round_number=0,
        difficulty=(_mean_difficulties(job), config.difficulty.deviation) if asks_difficulty else None,
    )
    adapter = Adapter()
    if generation.adaptation != "none":
        assert plain is not None
        adapter = _adapt(job, metrics, generation, load, plain, difficulties)
    if asks_difficulty and job.shared is None:
        _show_difficulty(job, load, adapter)
    start_from = _start_from_shots(job, load, records) if generation.start == "shots" else None
    return fill_pool(job, generation, load, adapter, records, start_from=start_from)


def fill_pool(
    job: Job,
    generation: Generation,
    load: Load,
    adapter: Adapter,
    records: Sequence[data.PoolRecord],
    *,
    round_number: int = 0,
    start_from: StartFrom | None = None,
    refine: Callable[[Adapter, SampleInputs], Adapter] | None = None,
) -> Made:
    """Generates what the pool's folder does not hold yet, as a stage, and reads it.

    Args:
        job: the run.
        generation: names the folder and the stage.
        load: reads the checkpoint, with the words that the prompts need.
        adapter: what the generator was adapted by.
        records: the whole pool.
        round_number: of generation, from 0.
        start_from, refine: see `generate_batches`.
    """
    config, folder = job.config, job.pool_folder(generation, round_number)
    name = generation.name if round_number == 0 else f"{generation.name}_{round_number}"

    def compute() -> dict[str, np.ndarray]:
        writer = data.PoolWriter(folder, job.split.real.class_names)
        if len(writer) < len(records):
            generator, params = load()
            title = "generate" if generation == PLAIN else f"generate, {name}"
            with report.Progress(title, len(records), "image", initial=len(writer), enabled=job.is_first) as progress:
                generate_pool(
                    generator,
                    params,
                    writer,
                    records,
                    adapter,
                    config_of(SamplingConfig, config.generator),
                    progress.update,
                    start_from=start_from,
                    refine=refine,
                    strength=config.conditioning.strength,
                )
        return {"num_images": np.array(len(records))}

    job.stages.run(f"pool_{name}", compute, job.shotless_folder(generation))
    return Made(data.read_pool(folder, job.split.real.class_names), adapter, round_number)


def loader(job: Job) -> Load:
    """What reads the checkpoint when it is first needed, and once."""
    return cache(lambda: _load(job))


def with_words(job: Job, metrics: report.MetricsWriter, load: Load, plain: data.Pool) -> Load:
    """What reads the checkpoint with a word for each class, which is learnt from the shots, beside plain images."""
    names = class_tokens(job.num_classes)

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        config = config_of(DenoisingConfig, job.config.inversion)
        with log_stage(metrics, "tokens", config.steps, job.config.log_every_steps) as on_step:
            embeds = learn_tokens(
                generator,
                params,
                data.class_prompts(job.config.generator.prompt, names),
                initial_embeds(generator, params, job.split.real.class_names),
                denoising_set(job, load, shots_of(job), job.split.real.labels),
                denoising_set(job, load, to_float(plain.images), plain.labels),
                config,
                job.key(INVERSION_KEY),
                on_step,
            )
        return {"embeds": sharding.to_host(embeds)}

    learnt = jnp.asarray(job.stages.run("tokens", compute)["embeds"])
    return cache(lambda: add_tokens(*load(), names, learnt))


def _load(job: Job) -> tuple[Generator, Params]:
    assert job.checkpoint is not None
    dtype = jnp.dtype(job.config.generator.dtype)
    return load_generator(job.checkpoint, dtype, sharding_for=sharding.sharding_for(job.mesh))


def images_per_class(job: Job, generation: Generation) -> np.ndarray:
    """How many images of each class a pool has: int [K]."""
    goal, counts = job.config.pool.fill_to, np.bincount(job.split.real.labels, minlength=job.num_classes)
    wanted = fill_counts(counts, goal) if goal else np.full(job.num_classes, job.config.pool.images_per_class)
    return job.config.joint.oversampling * wanted if generation.oversampling else wanted


def draw_prompts(job: Job, generation: Generation, round_number: int, probabilities: np.ndarray) -> list[list[str]]:
    """A prompt for each image of each class, with phrases drawn from probabilities [A], see `PromptAttributes`."""
    groups = PromptAttributes.parse(job.config.generator.phrases)
    rng = np.random.default_rng([job.config.seed, PHRASES_KEY, round_number])
    return [
        [groups.render(prompt, options) for options in groups.draw(probabilities, max(int(number), 1), rng)]
        for prompt, number in zip(job.prompts, images_per_class(job, generation), strict=True)
    ]


def prompts_of(job: Job, generation: Generation) -> list[list[str]]:
    """The prompts of each class: one, one a shot, or one an image."""
    if generation.prompt == "template":
        return [[prompt] for prompt in job.prompts]
    if generation.prompt == "token":
        tokens = class_tokens(job.num_classes)
        return [[prompt] for prompt in data.class_prompts(job.config.generator.prompt, tokens)]
    if generation.prompt == "phrases":
        groups = PromptAttributes.parse(job.config.generator.phrases)
        return draw_prompts(job, generation, 0, groups.uniform_probabilities(job.config.generator.phrase_probability))
    real = job.split.real
    # Every process makes its own: the same captions, in a file that nobody else writes.
    name = "captions.jsonl" if job.is_first else f"captions.{jax.process_index()}.jsonl"
    file = (job.shared.stages if job.shared else job.workdir) / name
    with report.Progress("captions", len(real), "image", enabled=job.is_first) as progress:
        captions = caption_labelled_images(job.config.captions.source, real, file, progress.update)
    words = [real.class_names[label] for label in real.labels]
    prompts = data.caption_prompts(f"{job.config.generator.prompt}, {{caption}}", words, captions)
    return [
        [prompt for prompt, label in zip(prompts, real.labels, strict=True) if label == each]
        for each in range(job.num_classes)
    ]


def shots_of(job: Job) -> Any:
    """The shots as the generator sees images: float32 [N, S, S, 3] in [-1, 1]."""
    return set_channels(resize(to_float(job.split.real.images), job.config.generator.image_size), 3)


def _start_from_shots(job: Job, load: Load, records: Sequence[data.PoolRecord]) -> StartFrom:
    """Starts each image from two shots of its class, in the way of the config."""
    real = job.split.real
    wanted, seeds = (np.array(values) for values in zip(*[(each.label, each.seed) for each in records], strict=True))
    sources = plan_sources(real.labels, wanted, np.random.default_rng([job.config.seed, SOURCES_KEY]))
    load_shots = cache(lambda: shots_of(job))

    def start_from(condition: Condition, places: np.ndarray) -> tuple[Condition, jax.Array | None]:
        generator, params = load()
        way = find_way(job.config.conditioning.way, generator.image_encoder is not None)
        first, second = (load_shots()[sources[places, column]] for column in (0, 1))
        return condition_on_images(generator, params, condition, way, first, second, seeds[places])

    return start_from


def _adapt(
    job: Job,
    metrics: report.MetricsWriter,
    generation: Generation,
    load: Load,
    plain: data.Pool,
    difficulties: tuple[np.ndarray, np.ndarray] | None,
) -> Adapter:
    """The adapter that was fitted to the shots, and to plain images beside them."""
    name = f"adaptation_{generation.name}"
    section = job.config.difficulty if generation.adaptation == "difficulty" else job.config.adaptation
    config = config_of(LoraConfig, section)
    of_shots, of_plain = difficulties or (None, None)

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        prior = denoising_set(job, load, to_float(plain.images), plain.labels, of_plain)
        if of_plain is not None:
            rng = np.random.default_rng([job.config.seed, ADAPTATION_KEY])
            prior = prior.take(balanced_resample(of_plain, 4 * len(of_plain), rng))
        with log_stage(metrics, name, config.steps, job.config.log_every_steps) as on_step:
            adapter = train_lora(
                generator,
                params,
                encode_prompts(generator, params, job.prompts),
                denoising_set(job, load, shots_of(job), job.split.real.labels, of_shots),
                prior,
                config,
                job.key(ADAPTATION_KEY),
                on_step,
            )
        return adapter_arrays(adapter)

    return adapter_of(job.stages.run(name, compute))


def _mean_difficulties(job: Job) -> np.ndarray:
    """What is asked of each class on average, float [K]."""
    settings, class_names = job.config.difficulty, job.split.real.class_names
    own = asked_of_classes(settings.by_class, class_names)
    return np.array([own.get(name, settings.mean) for name in class_names])


def _show_difficulty(job: Job, load: Load, adapter: Adapter) -> None:
    """Two images of what was learnt, for the report."""

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        config = config_of(SamplingConfig, job.config.generator)
        sheets = difficulty_sheets(generator, params, adapter, config, job.split.real.class_names, job.prompts)
        for name, sheet in sheets.items() if job.is_first else ():
            folder = job.workdir / "report"
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / f"{name}.png")
        return {"num_sheets": np.array(len(sheets))}

    job.stages.run("difficulty_sheets", compute)


def denoising_set(
    job: Job, load: Load, images: Any, labels: np.ndarray, difficulties: np.ndarray | None = None
) -> DenoisingSet:
    """Images float [N, S, S, 3] in [-1, 1] as the generator learns from them; difficulties float32 [N] if known."""
    generator, params = load()
    batch_size = job.config.generator.batch_size
    latents = [
        encode_to_latents(generator, params, jnp.asarray(images[start : start + batch_size]))
        for start in range(0, len(labels), batch_size)
    ]
    hard = None if difficulties is None else jnp.asarray(difficulties)
    return sharding.replicate(DenoisingSet(jnp.concatenate(latents), jnp.asarray(labels), hard))


def prompt_table(job: Job, load: Load, pool: data.Pool) -> tuple[jax.Array, np.ndarray]:
    """The different prompts of a pool as text states [P, T, D], and which of them each image has, int [N]."""
    generator, params = load()
    distinct, places = np.unique([record.prompt or "" for record in pool.records], return_inverse=True)
    size = min(job.config.generator.batch_size, len(distinct))
    # Parts of one shape, the last one filled up: they compile once.
    filled = [*distinct, *[distinct[-1]] * (-len(distinct) % size)]
    parts = [encode_prompts(generator, params, filled[start : start + size]) for start in range(0, len(filled), size)]
    return jnp.concatenate(parts)[: len(distinct)], places


def adapter_arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter as a stage's result; `adapter_of` is its inverse."""
    trained = {key: value for key, value in serialization.to_state_dict(adapter).items() if value is not None}
    return {path: sharding.to_host(leaf) for path, leaf in flatten_dict(trained, sep="/").items()}


def adapter_of(arrays: dict[str, np.ndarray]) -> Adapter:
    """The adapter of a stage's result."""
    return Adapter(**unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/"))
