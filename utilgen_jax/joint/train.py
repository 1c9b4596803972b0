"""The bilevel update at work: a classifier, prompt attributes and a LoRA of the UNet, trained in one jitted step.

The shots are parted into folds. Each fold has a classifier, which learns from the rest of the shots, the pool and
images that the generator makes in the step; one step ahead its loss on the fold's own images is seen. Through it
the two adapters, which all folds share, learn which phrases and which low-rank change of the UNet make that loss fall.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import Weighting, importance_ratio, uniform
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import ClassifierConfig, TrainingSet
from utilgen_jax.data.splits import Fold
from utilgen_jax.generator.adapter import Adapter, generate_images, labelled_examples
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params
from utilgen_jax.models.lora import init_lora
from utilgen_jax.runtime.sharding import init_sharded, split_batch, to_host
from utilgen_jax.valuation.cross_fit import as_examples, draw_examples, init_state


@dataclasses.dataclass(frozen=True)
class JointConfig:
    """How the adapters are trained.

    Attributes:
        steps: bilevel steps, the folds in turn.
        learning_rate: of Adam, for the phrases.
        weight_decay: added to their gradient: pulls the phrases back to how they were drawn.
        generated: images that the generator makes in a step, for the adapter over the UNet.
        lora_rank: of that adapter, on the attention.
        lora_learning_rate: of Adam, for it.
        sampler_steps: denoising steps to a generated image.
        differentiable_steps: through how many of the last of them gradients flow.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    generated: int
    lora_rank: int
    lora_learning_rate: float
    sampler_steps: int
    differentiable_steps: int


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are generated and shown to the classifier.

    Attributes:
        guidance_scale, scheduler: see `adapter.generate_images`.
        latent_shape: of an image's latents, (h, w, C).
        image_size, channels: that the classifier sees.
    """

    guidance_scale: float
    scheduler: str
    latent_shape: tuple[int, int, int]
    image_size: int
    channels: int


@struct.dataclass
class Prompts:
    """What the generator can be asked for in a step: the pool's own prompts.

    Attributes:
        embeds: text states of the P different prompts, float [P, T, D].
        negative: of the unconditional branch, float [1, T, D].
        of_images: which of them each image of the pool was made from, int32 [N].
    """

    embeds: jax.Array
    negative: jax.Array
    of_images: jax.Array


@dataclasses.dataclass(frozen=True)
class _Program:
    """What the compiled step depends on."""

    levels: tuple[str, ...]
    config: ClassifierConfig
    joint_config: JointConfig
    sampling: SamplingConfig
    num_classes: int
    num_attributes: int

    @property
    def weighting(self) -> Weighting:
        """Of the pool's and the generated images."""
        return importance_ratio(self.num_attributes) if "phrases" in self.levels else uniform()

    @property
    def outer_optimizer(self) -> optax.GradientTransformation:
        """Of what is there of both adapters, each by its own rate."""
        joint = self.joint_config
        optimizers = {
            "weighting": optax.chain(optax.add_decayed_weights(joint.weight_decay), optax.adam(joint.learning_rate)),
            "adapter": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(joint.lora_learning_rate)),
        }
        return optax.partition(optimizers, lambda outer: {name: name for name in outer})


def train_jointly(
    classifier: Classifier,
    config: ClassifierConfig,
    joint_config: JointConfig,
    sampling: SamplingConfig,
    levels: Sequence[str],
    generator: Generator,
    params: Params,
    num_classes: int,
    real: TrainingSet,
    pool: TrainingSet,
    prompts: Prompts,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: Callable[[int, BilevelMetrics], None],
) -> tuple[np.ndarray, Adapter]:
    """Trains the adapters.

    Args:
        classifier: as in the final training.
        config: likewise; its `steps` are replaced.
        joint_config: see there.
        generating: likewise.
        levels: "phrases", "lora" or both.
        generator: the checkpoint's architecture.
        params: its weights.
        num_classes: K.
        real: the shots.
        pool: with attributes.
        prompts: of its images.
        folds: of the shots.
        key: PRNG key.
        on_step: called after each step with (steps done, metrics on the device).

    Returns:
        What is added to the logarithms of the phrases' probabilities, float32 [A], zeros without that level; and the
        adapter, empty without the other.
    """
    # A fold's classifier takes every F-th step.
    config = dataclasses.replace(config, steps=-(-joint_config.steps // len(folds)))
    assert pool.attributes is not None
    num_attributes = pool.attributes.shape[-1]
    program = _Program(tuple(levels), config, joint_config, sampling, num_classes, num_attributes)

    def init_outer(key: jax.Array) -> dict[str, Any]:
        outer: dict[str, Any] = {"weighting": program.weighting.init(key)}
        if "lora" in levels:
            outer["adapter"] = Adapter(unet_lora=init_lora(params["unet"], key, rank=joint_config.lora_rank).factors)
        return outer

    outer = init_sharded(init_outer, jax.random.fold_in(key, 0))
    init_keys = [jax.random.fold_in(jax.random.fold_in(key, 1), number) for number in range(len(folds))]
    image_shape = real.images.shape[1:]
    states = [init_state(classifier, config, outer, program.outer_optimizer, image_shape, each) for each in init_keys]
    shared = outer, states[0].outer_optimizer_state
    for step in range(joint_config.steps):
        number = step % len(folds)
        fold = folds[number]
        state = dataclasses.replace(states[number], outer=shared[0], outer_optimizer_state=shared[1])
        step_key = jax.random.fold_in(jax.random.fold_in(key, 2), step)
        train, validation = real.take(fold.train_indices), real.take(fold.validation_indices)
        states[number], metrics = _step(
            program, generator, classifier, state, params, train, pool, validation, prompts, step_key
        )
        shared = states[number].outer, states[number].outer_optimizer_state
        on_step(step + 1, metrics)
    logits = shared[0]["weighting"].get("logits", np.zeros(num_attributes))
    return to_host(logits), shared[0].get("adapter", Adapter())


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _step(
    program: _Program,
    generator: Generator,
    classifier: Classifier,
    state: BilevelState,
    params: Params,
    real: TrainingSet,
    pool: TrainingSet,
    validation: TrainingSet,
    prompts: Prompts,
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One update on fresh batches of real, synthetic and generated images."""
    config, sampling, joint_config = program.config, program.sampling, program.joint_config

    def generate(adapter: Adapter, asked: tuple[SampleInputs, jax.Array]) -> Examples:
        sample_inputs, attributes = asked
        images = generate_images(
            generator,
            params,
            adapter,
            sample_inputs,
            num_steps=joint_config.sampler_steps,
            guidance_scale=sampling.guidance_scale,
            scheduler=sampling.scheduler,
            num_differentiable_steps=joint_config.differentiable_steps,
        )
        examples = labelled_examples(
            images,
            sample_inputs.labels,
            num_classes=program.num_classes,
            image_size=sampling.image_size,
            channels=sampling.channels,
            label_smoothing=config.label_smoothing,
        )
        return dataclasses.replace(examples, attributes=attributes)

    update = make_bilevel_update(
        classifier.apply,
        program.weighting,
        classification.make_optimizer(config),
        program.outer_optimizer,
        generate=generate,
    )
    examples = draw_examples(config, real, pool, program.num_classes, jax.random.fold_in(key, 0))
    asked = _ask(program, generator, pool, prompts, jax.random.fold_in(key, 1)) if "lora" in program.levels else None
    return update(state, examples, as_examples(config, validation, program.num_classes), asked)


def _ask(
    program: _Program, generator: Generator, pool: TrainingSet, prompts: Prompts, key: jax.Array
) -> tuple[SampleInputs, jax.Array]:
    """SampleInputs for some of the pool's prompts with fresh noise, and what they ask for in numbers."""
    number = program.joint_config.generated
    chosen = jax.random.randint(jax.random.fold_in(key, 0), (number,), 0, pool.labels.shape[0])
    embeds = prompts.embeds[prompts.of_images[chosen]]
    sample_inputs = SampleInputs(
        condition=embeds_condition(generator, embeds, prompts.negative),
        latents=jax.random.normal(jax.random.fold_in(key, 1), (number, *program.sampling.latent_shape)),
        labels=pool.labels[chosen],
        rows=jnp.arange(number),
        keys=jax.vmap(lambda place: jax.random.fold_in(jax.random.fold_in(key, 2), place))(jnp.arange(number)),
    )
    assert pool.attributes is not None
    return split_batch((sample_inputs, pool.attributes[chosen]))
