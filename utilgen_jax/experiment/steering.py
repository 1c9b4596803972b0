"""From a pool to one that two adapters ask for, over phrases and over the UNet, which the bilevel update trains."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from utilgen_jax import report
from utilgen_jax.classifier.train import TrainingSet
from utilgen_jax.experiment.appraisal import pool_training_set
from utilgen_jax.experiment.results import log_stage
from utilgen_jax.experiment.setup import STEERING_KEY, Job, config_of
from utilgen_jax.experiment.synthesis import (
    Load,
    Made,
    adapter_arrays,
    adapter_of,
    draw_prompts,
    fill_pool,
    images_per_class,
    prompt_table,
)
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.joint.train import JointConfig, Prompts, SamplingConfig, train_jointly
from utilgen_jax.methods import Generation
from utilgen_jax.pool.generate import plan_pool
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.runtime import sharding

_PROBABILITIES = "probabilities"


def apply_adapter(
    job: Job, metrics: report.MetricsWriter, load: Load, generation: Generation, made: Made, real: TrainingSet
) -> Made:
    """A pool that is asked for as the adapters say, which learn from the one before.

    Args:
        job: the run.
        metrics: its writer.
        load: reads the checkpoint.
        generation: says which adapters.
        made: the pool before, of phrases drawn by the config's probabilities.
        real: the shots, as the classifier sees them.
    """
    config, name = job.config, f"steering_{generation.name}"
    groups = PromptAttributes.parse(config.generator.phrases)
    even = groups.uniform_probabilities(config.generator.phrase_probability)
    joint_config = config_of(JointConfig, config.joint)

    def compute() -> dict[str, np.ndarray]:
        generator, params = load()
        embeds, places = prompt_table(job, load, made.pool)
        side = config.generator.image_size // generator.vae_scale_factor
        sampling = SamplingConfig(
            guidance_scale=config.generator.guidance_scale,
            scheduler=config.generator.scheduler,
            latent_shape=(side, side, generator.unet.in_channels),
            image_size=config.data.image_size,
            channels=config.data.channels,
        )
        prompts = Prompts(
            embeds=embeds,
            negative=encode_prompts(generator, params, [config.generator.negative_prompt]),
            of_images=jnp.asarray(places),
        )
        with log_stage(metrics, name, joint_config.steps, config.log_every_steps) as on_step:
            logits, adapter = train_jointly(
                job.classifier,
                job.classifier_config,
                joint_config,
                sampling,
                generation.levels,
                generator,
                params,
                job.num_classes,
                real,
                pool_training_set(job, generation, made.pool),
                sharding.replicate(prompts),
                job.folds,
                job.key(STEERING_KEY),
                lambda step, seen: on_step(
                    step, seen.train_loss, seen.first_nonfinite, validation_loss=seen.validation_loss
                ),
            )
        return {_PROBABILITIES: groups.reweighted(even, logits), **adapter_arrays(adapter)}

    found = job.stages.run(name, compute)
    probabilities, adapter = found.pop(_PROBABILITIES), adapter_of(found)
    number = made.round + 1
    prompts = draw_prompts(job, generation, number, probabilities)
    records = plan_pool(prompts, images_per_class(job, generation), config.seed, number)
    return fill_pool(job, generation, load, adapter, records, round_number=number)
