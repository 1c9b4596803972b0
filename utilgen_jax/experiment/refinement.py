"""From a pool and what its images are worth to a better pool: UtilGen's levels (arXiv 2510.24262) as stages.

Model level: rounds in which the pool is valued, the generator learns to prefer useful to useless images of a class,
and a new pool is made. Instance level: the pool is valued once more, and each image of the next one gets a prompt and
a starting noise of its own, by what the classifiers and weight networks of that valuation say of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import report
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import TrainingSet
from utilgen_jax.data.images import to_float
from utilgen_jax.experiment.appraisal import Params, appraise, fold_models_of, pool_training_set
from utilgen_jax.experiment.results import log_stage
from utilgen_jax.experiment.setup import PREFERENCE_KEY, Job, config_of
from utilgen_jax.experiment.steering import apply_adapter
from utilgen_jax.experiment.synthesis import (
    Load,
    Made,
    adapter_arrays,
    adapter_of,
    denoising_set,
    fill_pool,
    images_per_class,
    prompt_table,
    prompts_of,
    shots_of,
)
from utilgen_jax.generator.adapter import Adapter, labelled_examples
from utilgen_jax.generator.clip_similarity import TEXT_PROJECTION, embed_prompts, load_text_projection
from utilgen_jax.generator.conditioning import encode_images
from utilgen_jax.generator.finetune.dpo import DpoConfig, DpoPairs, train_dpo
from utilgen_jax.generator.finetune.dpo_loss import preference_pairs
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator
from utilgen_jax.generator.per_image import PerImageConfig, add_golden_noise, optimize_prompts
from utilgen_jax.methods import Generation
from utilgen_jax.pool.generate import plan_pool
from utilgen_jax.pool.selection import choose_uncertain, choose_useful
from utilgen_jax.runtime import sharding
from utilgen_jax.valuation.cross_fit import ValuationConfig, predict_weights

WEIGHTING = "weight_network"  # of UtilGen, which all levels look at


def refine_pool(
    job: Job,
    metrics: report.MetricsWriter,
    load: Load,
    generation: Generation,
    base: Made,
    real: TrainingSet,
    real_classifier: Params,
) -> Made:
    """The pool of a way of generation that refines another.

    Args:
        job: the run.
        metrics: its writer.
        load: reads the checkpoint, with the words that the prompts need.
        generation: how.
        base: what is refined.
        real: the shots, as the classifier sees them.
        real_classifier: of the shots alone.
    """
    made = base
    value = partial(_value, job, metrics, generation, real=real, real_classifier=real_classifier)
    if {"phrases", "lora"} & set(generation.levels):
        made = apply_adapter(job, metrics, load, generation, made, real)
    if "utility" in generation.levels:
        made = choose_useful(job, metrics, generation, made, real, real_classifier)
    if "uncertainty" in generation.levels:
        made = choose_uncertain(job, metrics, generation, made, real)
    if "model" in generation.levels:
        for _ in range(job.config.preference.rounds):
            adapter = _prefer(job, metrics, load, generation, made, value(made)["weight"])
            made = _next_pool(job, load, generation, made, adapter)
    if "prompt" in generation.levels or "noise" in generation.levels:
        fold_models = fold_models_of(value(made)) if "prompt" in generation.levels else None
        refine = _refine_batches(job, load, generation, fold_models)
        made = _next_pool(job, load, generation, made, made.adapter, refine)
    return made


def _value(
    job: Job,
    metrics: report.MetricsWriter,
    generation: Generation,
    made: Made,
    real: TrainingSet,
    real_classifier: Params,
) -> dict[str, np.ndarray]:
    synthetic = pool_training_set(job, generation, made.pool)
    name = f"value_{generation.name}_{made.round}"
    values = appraise(job, metrics, name, WEIGHTING, real, synthetic, real_classifier)
    # The curve W(loss), of which all levels follow the slope: in two figures, and drawn.
    slope, correlation = weight_slope(values["loss"], values["weight"])
    metrics.write(made.round, f"weight_curve_{generation.name}", slope=slope, correlation=correlation)
    if job.is_first:
        image = f"weight_curve_{generation.name}_{made.round}.png"
        report.plot_weight_curve(values["loss"], values["weight"], job.workdir / "report" / image)
    return values


def weight_slope(losses: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Of the curve W(loss) over a pool: what a weight gains by a loss larger by 1, and their correlation; 0 if flat."""
    spread = losses - losses.mean()
    slope = float(np.sum(spread * weights) / max(np.sum(spread**2), 1e-12))
    deviation = float(np.std(weights))
    return slope, slope * float(np.std(losses)) / deviation if deviation > 1e-8 else 0.0


def _next_pool(
    job: Job,
    load: Load,
    generation: Generation,
    made: Made,
    adapter: Adapter,
    refine: Callable[[Adapter, SampleInputs], Adapter] | None = None,
) -> Made:
    number = made.round + 1
    records = plan_pool(prompts_of(job, generation), images_per_class(job, generation), job.config.seed, number)
    return fill_pool(job, generation, load, adapter, records, round_number=number, refine=refine)


def _prefer(
    job: Job, metrics: report.MetricsWriter, load: Load, generation: Generation, made: Made, weights: np.ndarray
) -> Adapter:
    """The adapter after a round of preferring a pool's useful images."""
    name = f"preference_{generation.name}_{made.round}"
    config = config_of(DpoConfig, job.config.preference)

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        pool = made.pool
        winners, losers = preference_pairs(weights, pool.labels, config.fraction)
        embeds, places = prompt_table(job, load, pool)
        images = denoising_set(job, load, to_float(pool.images), pool.labels)
        pairs = DpoPairs(
            latents=images.latents,
            labels=images.labels,
            prompt_embeds=embeds,
            prompts=jnp.asarray(places),
            winners=jnp.asarray(winners),
            losers=jnp.asarray(losers),
        )
        key = jax.random.fold_in(job.key(PREFERENCE_KEY), made.round)
        with log_stage(metrics, name, config.steps, job.config.log_every_steps) as on_step:
            adapter = train_dpo(generator, params, made.adapter, sharding.replicate(pairs), config, key, on_step)
        return adapter_arrays(adapter)

    return adapter_of(job.stages.run(name, compute))


@dataclasses.dataclass(frozen=True)
class _Refinement:
    """What a compiled refinement depends on: levels and configs, and how images are made and seen."""

    levels: tuple[str, ...]
    config: PerImageConfig
    valuation_config: ValuationConfig
    num_steps: int
    guidance_scale: float
    scheduler: str
    num_classes: int
    image_size: int
    channels: int
    label_smoothing: float


def _refine_batches(
    job: Job, load: Load, generation: Generation, fold_models: dict[str, Params] | None
) -> Callable[[Adapter, SampleInputs], Adapter]:
    """What gives each image of a batch its own prompt and noise."""
    config = job.config
    settings = _Refinement(
        levels=generation.levels,
        config=config_of(PerImageConfig, config.instance),
        valuation_config=config_of(ValuationConfig, config.utility),
        num_steps=config.generator.steps,
        guidance_scale=config.generator.guidance_scale,
        scheduler=config.generator.scheduler,
        num_classes=job.num_classes,
        image_size=config.data.image_size,
        channels=config.data.channels,
        label_smoothing=config.classifier.label_smoothing,
    )
    load_anchors = cache(lambda: _class_anchors(job, *load()))

    def refine_batch(adapter: Adapter, sample_inputs: SampleInputs) -> Adapter:
        anchors = load_anchors()
        if anchors is not None:
            sample_inputs = dataclasses.replace(sample_inputs, clip_anchors=anchors[sample_inputs.labels])
        return _refine(settings, *load(), job.classifier, fold_models, adapter, sample_inputs)

    return refine_batch


@partial(jax.jit, static_argnums=(0, 1))
def _refine(
    settings: _Refinement,
    generator: Generator,
    params: Params,
    classifier: Classifier,
    fold_models: dict[str, Params] | None,
    adapter: Adapter,
    sample_inputs: SampleInputs,
) -> Adapter:
    def utility(images: jax.Array, labels: jax.Array) -> jax.Array:
        assert fold_models is not None
        examples = labelled_examples(
            images,
            labels,
            num_classes=settings.num_classes,
            image_size=settings.image_size,
            channels=settings.channels,
            label_smoothing=settings.label_smoothing,
        )
        return predict_weights(classifier, WEIGHTING, settings.valuation_config, fold_models, examples)

    if "prompt" in settings.levels:
        adapter = optimize_prompts(
            generator,
            params,
            adapter,
            sample_inputs,
            utility,
            settings.config,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
        )
    if "noise" in settings.levels:
        adapter = add_golden_noise(
            generator,
            params,
            adapter,
            sample_inputs,
            settings.config,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
        )
    return adapter


def _class_anchors(job: Job, generator: Generator, params: Params) -> jax.Array | None:
    """What images of each class should stay near in CLIP's space, [K, E]; None where images cannot be embedded.

    The words of the class; of a checkpoint whose text tower has no projection to that space, the mean of its shots.
    """
    if generator.image_encoder is None:
        return None
    assert job.checkpoint is not None
    if (job.checkpoint / TEXT_PROJECTION).is_dir():
        projection = load_text_projection(job.checkpoint, generator)
        return embed_prompts(generator, params, projection, job.prompts)
    embeds = encode_images(generator, params, shots_of(job)).astype(jnp.float32)
    embeds = embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)
    return jax.ops.segment_sum(embeds, jnp.asarray(job.split.real.labels), job.num_classes)
