"""The bilevel update at work: a classifier, prompt attributes and a LoRA of the UNet, trained in one jitted step.

The shots are divided into folds. Each fold has a classifier, which learns from the other shots, the pool, and images
that the generator makes in the step; one step ahead its loss on the fold's own images is measured. Through it the
attributes' logits and the LoRA, which all folds share, learn which prompts and which low-rank change of the UNet make
that loss fall.
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
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput, draw_batch
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import make_optimizer
from utilgen_jax.data.splits import Fold
from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.models.lora import init_lora
from utilgen_jax.runtime.sharding import init_sharded, split_batch, to_host
from utilgen_jax.valuation.cross_fit import init_state, smoothed


@dataclasses.dataclass(frozen=True)
class JointProgram:
    """What the compiled step depends on.

    Attributes:
        config: the classifier's.
        joint: the outer level's.
        sampling: of the images made in the step; its steps and batch size are replaced by the joint config's.
        classifier_input: what the classifier sees of an image.
        latent_shape: of an image's latents, (h, w, C).
        num_attributes: A.
        train_attributes: whether the attributes' logits are trained.
        train_lora: whether the LoRA is; without it no image is generated in the step.
    """

    config: ClassifierConfig
    joint: JointConfig
    sampling: SamplingConfig
    classifier_input: ClassifierInput
    latent_shape: tuple[int, int, int]
    num_attributes: int
    train_attributes: bool = True
    train_lora: bool = True

    @property
    def weighting(self) -> Weighting:
        """Of the pool's and the generated images."""
        return importance_ratio(self.num_attributes) if self.train_attributes else uniform()

    @property
    def outer_optimizer(self) -> optax.GradientTransformation:
        """Gives attributes and LoRA their own optimisers."""
        joint = self.joint
        optimizers = {
            "weighting": optax.chain(optax.add_decayed_weights(joint.weight_decay), optax.adam(joint.learning_rate)),
            "adapter": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(joint.lora_learning_rate)),
        }
        return optax.partition(optimizers, lambda outer: {name: name for name in outer})


@struct.dataclass
class JointData:
    """Training data, and the prompts that the generator draws from in a step: the pool's own.

    Attributes:
        real: the shots.
        pool: synthetic images, with attributes.
        prompt_embeds: text states of the P different prompts of the pool, float [P, T, D].
        negative_prompt_embeds: of the unconditional branch, float [1, T, D].
        prompt_of_image: which of the P prompts each image of the pool was made from, int32 [N].
    """

    real: Examples
    pool: Examples
    prompt_embeds: jax.Array
    negative_prompt_embeds: jax.Array
    prompt_of_image: jax.Array


def train_jointly(
    classifier: Classifier,
    program: JointProgram,
    sd: StableDiffusion,
    data: JointData,
    folds: Sequence[Fold],
    key: jax.Array,
    on_step: Callable[[int, BilevelMetrics], None],
) -> tuple[np.ndarray, Adapter]:
    """Trains attributes' logits and LoRA.

    Args:
        classifier: as in the final training.
        program: configs, and which parts are trained.
        sd: the generator; its weights stay as they are.
        data: see `JointData`.
        folds: of the shots.
        key: PRNG key.
        on_step: called after each step with (steps done, metrics on the device).

    Returns:
        What is added to the attributes' log-probabilities, float32 [A], zeros where they are not trained; and the
        adapter, empty where the LoRA is not.
    """
    joint = program.joint
    # A fold's classifier takes every F-th step.
    program = dataclasses.replace(
        program,
        config=dataclasses.replace(program.config, steps=-(-joint.steps // len(folds))),
        sampling=dataclasses.replace(program.sampling, steps=joint.sampler_steps, batch_size=joint.num_generated),
    )

    def init_outer(key: jax.Array) -> dict[str, Any]:
        outer: dict[str, Any] = {"weighting": program.weighting.init(key)}
        if program.train_lora:
            outer["adapter"] = Adapter(unet_lora=init_lora(sd.params["unet"], key, rank=joint.lora_rank).factors)
        return outer

    outer = init_sharded(init_outer, jax.random.fold_in(key, 0))
    init_keys = [jax.random.fold_in(jax.random.fold_in(key, 1), number) for number in range(len(folds))]
    image_shape = data.real.inputs.shape[1:]
    states = [
        init_state(classifier, program.config, outer, program.outer_optimizer, image_shape, init_key)
        for init_key in init_keys
    ]
    shared = outer, states[0].outer_optimizer_state
    for step in range(joint.steps):
        number = step % len(folds)
        fold = folds[number]
        state = dataclasses.replace(states[number], outer=shared[0], outer_optimizer_state=shared[1])
        step_key = jax.random.fold_in(jax.random.fold_in(key, 2), step)
        train = dataclasses.replace(data, real=data.real.take(fold.train_indices))
        validation = data.real.take(fold.validation_indices)
        states[number], metrics = _step(program, classifier, state, sd, train, validation, step_key)
        shared = states[number].outer, states[number].outer_optimizer_state
        on_step(step + 1, metrics)
    logits = shared[0]["weighting"].get("logits", np.zeros(program.num_attributes))
    return to_host(logits), shared[0].get("adapter", Adapter())


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    program: JointProgram,
    classifier: Classifier,
    state: BilevelState,
    sd: StableDiffusion,
    data: JointData,
    validation: Examples,
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One update on fresh batches of real, synthetic and newly generated images."""

    def generate(adapter: Adapter, drawn: tuple[SampleInputs, jax.Array]) -> Examples:
        inputs, attributes = drawn
        images = generate_images(sd, adapter, inputs, program.sampling, program.joint.differentiable_steps)
        examples = program.classifier_input.examples(images, inputs.labels, program.config.label_smoothing)
        return dataclasses.replace(examples, attributes=attributes)

    update = make_bilevel_update(
        classifier.apply,
        program.weighting,
        make_optimizer(program.config),
        program.outer_optimizer,
        generate=generate,
    )
    batch = draw_batch(program.config, data.real, data.pool, jax.random.fold_in(key, 0))
    inputs = _draw_inputs(program, sd, data, jax.random.fold_in(key, 1)) if program.train_lora else None
    return update(state, smoothed(program.config, batch), smoothed(program.config, validation), inputs)


def _draw_inputs(
    program: JointProgram, sd: StableDiffusion, data: JointData, key: jax.Array
) -> tuple[SampleInputs, jax.Array]:
    """Draws some of the pool's prompts, with fresh noise and their attributes [M, A]."""
    number, pool = program.joint.num_generated, data.pool
    chosen = jax.random.randint(jax.random.fold_in(key, 0), (number,), 0, len(pool))
    embeds = data.prompt_embeds[data.prompt_of_image[chosen]]
    inputs = SampleInputs(
        condition=embeds_condition(sd, embeds, data.negative_prompt_embeds),
        latents=jax.random.normal(jax.random.fold_in(key, 1), (number, *program.latent_shape)),
        labels=pool.labels[chosen],
        rows=jnp.arange(number),
        keys=jax.vmap(lambda place: jax.random.fold_in(jax.random.fold_in(key, 2), place))(jnp.arange(number)),
    )
    assert pool.attributes is not None
    return split_batch((inputs, pool.attributes[chosen]))
