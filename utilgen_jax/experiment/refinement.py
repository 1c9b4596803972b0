"""From a pool and what its pictures are worth to a better pool: UtilGen's levels (arXiv 2510.24262) as stages.

Model level: rounds in which the pool is valued, the generator learns to prefer useful to useless pictures of a class,
and a new pool is made. Instance level: the pool is valued once more, and each picture of the next one gets a prompt and
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
from utilgen_jax.experiment.appraisal import Params, appraise, judges_of, pool_training_set
from utilgen_jax.experiment.results import log_stage
from utilgen_jax.experiment.setup import PREFERENCE_KEY, Job, recipe_of
from utilgen_jax.experiment.steering import steer
from utilgen_jax.experiment.synthesis import (
    Load,
    Made,
    denoising_set,
    fill_pool,
    images_per_class,
    policy_arrays,
    policy_of,
    prompt_table,
    prompts_of,
    shots_of,
)
from utilgen_jax.generator.adapter import Policy, labelled_examples
from utilgen_jax.generator.clip_similarity import TEXT_PROJECTION, embed_prompts, load_text_projection
from utilgen_jax.generator.conditioning import encode_images
from utilgen_jax.generator.finetune.dpo import PreferenceRecipe, PreferenceSet, prefer
from utilgen_jax.generator.finetune.dpo_loss import preference_pairs
from utilgen_jax.generator.inputs import Requests
from utilgen_jax.generator.loading import Generator
from utilgen_jax.generator.per_image import InstanceRecipe, with_own_noises, with_own_prompts
from utilgen_jax.methods import Generation
from utilgen_jax.pool.generate import plan_pool
from utilgen_jax.pool.selection import choose_uncertain, choose_useful
from utilgen_jax.runtime import sharding as parallel
from utilgen_jax.valuation.cross_fit import WeightRecipe, judged_weights

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
        made = steer(job, metrics, load, generation, made, real)
    if "utility" in generation.levels:
        made = choose_useful(job, metrics, generation, made, real, real_classifier)
    if "uncertainty" in generation.levels:
        made = choose_uncertain(job, metrics, generation, made, real)
    if "model" in generation.levels:
        for _ in range(job.config.preference.rounds):
            policy = _prefer(job, metrics, load, generation, made, value(made)["weight"])
            made = _next_pool(job, load, generation, made, policy)
    if "prompt" in generation.levels or "noise" in generation.levels:
        judges = judges_of(value(made)) if "prompt" in generation.levels else None
        refine = _refine_batches(job, load, generation, judges)
        made = _next_pool(job, load, generation, made, made.policy, refine)
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
        picture = f"weight_curve_{generation.name}_{made.round}.png"
        report.plot_weight_curve(values["loss"], values["weight"], job.workdir / "report" / picture)
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
    policy: Policy,
    refine: Callable[[Policy, Requests], Policy] | None = None,
) -> Made:
    number = made.round + 1
    records = plan_pool(prompts_of(job, generation), images_per_class(job, generation), job.config.seed, number)
    return fill_pool(job, generation, load, policy, records, round_number=number, refine=refine)


def _prefer(
    job: Job, metrics: report.MetricsWriter, load: Load, generation: Generation, made: Made, weights: np.ndarray
) -> Policy:
    """The policy after a round of preferring a pool's useful pictures."""
    name = f"preference_{generation.name}_{made.round}"
    recipe = recipe_of(PreferenceRecipe, job.config.preference)

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        pool = made.pool
        winners, losers = preference_pairs(weights, pool.labels, recipe.fraction)
        embeds, places = prompt_table(job, load, pool)
        pictures = denoising_set(job, load, to_float(pool.images), pool.labels)
        pairs = PreferenceSet(
            latents=pictures.latents,
            labels=pictures.labels,
            prompt_embeds=embeds,
            prompts=jnp.asarray(places),
            winners=jnp.asarray(winners),
            losers=jnp.asarray(losers),
        )
        key = jax.random.fold_in(job.key(PREFERENCE_KEY), made.round)
        with log_stage(metrics, name, recipe.steps, job.config.log_every_steps) as on_step:
            policy = prefer(generator, params, made.policy, parallel.replicate(pairs), recipe, key, on_step)
        return policy_arrays(policy)

    return policy_of(job.stages.run(name, compute))


@dataclasses.dataclass(frozen=True)
class _Refinement:
    """What a compiled refinement depends on: levels and recipes, and how pictures are made and seen."""

    levels: tuple[str, ...]
    recipe: InstanceRecipe
    weight_recipe: WeightRecipe
    num_steps: int
    guidance_scale: float
    scheduler: str
    num_classes: int
    image_size: int
    channels: int
    label_smoothing: float


def _refine_batches(
    job: Job, load: Load, generation: Generation, judges: dict[str, Params] | None
) -> Callable[[Policy, Requests], Policy]:
    """What gives each picture of a batch its own prompt and noise."""
    config = job.config
    settings = _Refinement(
        levels=generation.levels,
        recipe=recipe_of(InstanceRecipe, config.instance),
        weight_recipe=recipe_of(WeightRecipe, config.utility),
        num_steps=config.generator.steps,
        guidance_scale=config.generator.guidance_scale,
        scheduler=config.generator.scheduler,
        num_classes=job.num_classes,
        image_size=config.data.image_size,
        channels=config.data.channels,
        label_smoothing=config.classifier.label_smoothing,
    )
    load_anchors = cache(lambda: _class_anchors(job, *load()))

    def refine_batch(policy: Policy, requests: Requests) -> Policy:
        anchors = load_anchors()
        if anchors is not None:
            requests = dataclasses.replace(requests, clip_anchors=anchors[requests.labels])
        return _refine(settings, *load(), job.classifier, judges, policy, requests)

    return refine_batch


@partial(jax.jit, static_argnums=(0, 1))
def _refine(
    settings: _Refinement,
    generator: Generator,
    params: Params,
    classifier: Classifier,
    judges: dict[str, Params] | None,
    policy: Policy,
    requests: Requests,
) -> Policy:
    def utility(images: jax.Array, labels: jax.Array) -> jax.Array:
        assert judges is not None
        examples = labelled_examples(
            images,
            labels,
            num_classes=settings.num_classes,
            image_size=settings.image_size,
            channels=settings.channels,
            label_smoothing=settings.label_smoothing,
        )
        return judged_weights(classifier, WEIGHTING, settings.weight_recipe, judges, examples)

    if "prompt" in settings.levels:
        policy = with_own_prompts(
            generator,
            params,
            policy,
            requests,
            utility,
            settings.recipe,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
        )
    if "noise" in settings.levels:
        policy = with_own_noises(
            generator,
            params,
            policy,
            requests,
            settings.recipe,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
        )
    return policy


def _class_anchors(job: Job, generator: Generator, params: Params) -> jax.Array | None:
    """What pictures of each class should stay near in CLIP's space, [K, E]; None where pictures cannot be embedded.

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
