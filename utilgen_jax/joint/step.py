"""The one jitted update: classifier, weight network, LoRA, difficulty encoder and attributes learn side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from utilgen_jax.bilevel import BilevelMetrics, BilevelState, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.dataset import StepKey, random_shift
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import training_logits
from utilgen_jax.data.images import set_channels
from utilgen_jax.generator.adapter import Adapter, generate_images, generate_images_beside, requested_difficulty
from utilgen_jax.generator.conditioning import embeds_condition, encode_images
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes, TextStates
from utilgen_jax.joint.program import JointBatch, JointData, JointProgram
from utilgen_jax.joint.regularizers import AnchorBatch, anchor, coverage
from utilgen_jax.runtime.loops import map_in_parts
from utilgen_jax.runtime.sharding import split_batch
from utilgen_jax.types import Params, PyTree
from utilgen_jax.valuation.cross_fit import smoothed


@struct.dataclass
class Drawn:
    """What an update generates, and what it is held to; M images a leaf.

    Attributes:
        inputs: of the images to generate.
        attributes: of their prompts, float32 [M, A].
        own: noised images that the frozen generator has made; None where the update has no anchor.
        real: training shots, see `regularizers.coverage`; None where there is no such term.
    """

    inputs: SampleInputs
    attributes: jax.Array
    own: AnchorBatch | None
    real: Examples | None


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def joint_update(
    program: JointProgram,
    classifier: Classifier,
    state: BilevelState,
    sd: StableDiffusion,
    data: JointData,
    batch: JointBatch,
    key: jax.Array,
) -> tuple[BilevelState, BilevelMetrics]:
    """One update on a batch of real and synthetic images and on newly generated ones.

    Args:
        program: static.
        classifier: trained on the inner level.
        state: donated.
        sd: the generator; its weights stay as they are.
        data: what images are generated of.
        batch: see `JointBatch`.
        key: PRNG key of the step.
    """
    joint = program.joint

    def generate(adapter: Adapter, drawn: Drawn) -> tuple[Examples, jax.Array]:
        def generate_part(part: Drawn) -> tuple[jax.Array, jax.Array | None]:
            arguments = sd, adapter, part.inputs, program.step_sampling, joint.differentiable_steps
            if part.own is None:
                return generate_images(*arguments), None
            return generate_images_beside(*arguments, (part.own.inputs, part.own.timesteps))

        images, predictions = map_in_parts(generate_part, drawn, joint.micro_batch_size)
        penalty = jnp.zeros(())
        if drawn.own is not None:
            penalty += joint.anchor * anchor(predictions, drawn.own)
        examples = program.classifier_input.examples(images, drawn.inputs.labels, program.config.label_smoothing)
        difficulty = requested_difficulty(adapter, drawn.inputs)
        return dataclasses.replace(examples, attributes=drawn.attributes, difficulty=difficulty), penalty

    def regularize(images: jax.Array, adapter: Adapter, params: Params, drawn: Drawn) -> jax.Array:
        del adapter  # its own penalty comes with the images
        penalty = jnp.zeros(())
        features: dict[str, Callable[[jax.Array], jax.Array]] = {
            "classifier": partial(classifier.features, params),
            "image_encoder": lambda seen: encode_images(sd, set_channels(seen, 3)),
        }
        for name in joint.coverage_features if program.has_coverage else ():
            assert drawn.real is not None
            generated, real = features[name](images), features[name](drawn.real.inputs)
            penalty += joint.coverage * coverage(generated, drawn.inputs.labels, real, drawn.real.labels)
        return penalty

    update = make_bilevel_update(
        partial(training_logits, classifier, program.config, batch.class_counts),
        program.weighting,
        program.optimizer,
        program.outer_optimizer,
        generate=generate,
        regularizer=regularize,
        num_inner_steps=joint.inner_steps,
    )
    examples = smoothed(program.config, batch.examples)
    if batch.validation is None:
        return update(state, examples)
    requests = [_draw_requests(program, sd, data, jax.random.fold_in(key, step)) for step in range(joint.inner_steps)]
    drawn = requests[0] if joint.inner_steps == 1 else stack(requests)
    validation = _shifted(program, batch.validation, jax.random.fold_in(key, joint.inner_steps))
    return update(state, examples, validation, dataclasses.replace(drawn, real=batch.shots))


def first_inputs(program: JointProgram, sd: StableDiffusion, data: JointData) -> SampleInputs:
    """Sample inputs of an image, which give an adapter its shapes."""
    return _inputs(
        program, sd, data.negative_prompt_embeds, data.prompt_embeds[:1], data.prompt_labels[:1], jax.random.key(0)
    )


def _shifted(program: JointProgram, validation: Examples, key: jax.Array) -> Examples:
    """The held-out shots, each shifted at random."""
    images = random_shift(validation.inputs, jax.random.fold_in(key, StepKey.SHIFT), program.config.max_shift)
    return smoothed(program.config, dataclasses.replace(validation, inputs=images))


def _draw_requests(program: JointProgram, sd: StableDiffusion, data: JointData, key: jax.Array) -> Drawn:
    """Draws prompts for new images, and images that the generator has made, each with fresh noise."""
    number = program.joint.num_generated
    prompt_key, own_key = (jax.random.fold_in(key, use) for use in range(2))
    prompts = jax.random.randint(prompt_key, (number,), 0, len(data.prompt_labels))
    draw = partial(_inputs, program, sd, data.negative_prompt_embeds)
    own, anchors = None, data.anchors
    if anchors is not None and program.has_anchor:
        rows = jax.random.randint(own_key, (number,), 0, len(anchors.labels))
        labels = anchors.labels[rows]
        inputs = draw(anchors.class_embeds[labels], labels, jax.random.fold_in(key, 4))
        noisy = dataclasses.replace(inputs, latents=anchors.latents[rows])
        own = AnchorBatch(noisy, anchors.timesteps[rows], anchors.predictions[rows])
    drawn = Drawn(
        inputs=draw(data.prompt_embeds[prompts], data.prompt_labels[prompts], jax.random.fold_in(key, 3)),
        attributes=data.prompt_attributes[prompts],
        own=own,
        real=None,
    )
    return split_batch(drawn)


def _inputs(
    program: JointProgram,
    sd: StableDiffusion,
    negative_prompt_embeds: TextStates,
    embeds: TextStates,
    labels: jax.Array,
    key: jax.Array,
) -> SampleInputs:
    sizes = ImageSizes.of_latents(sd.architecture, program.latent_shape)
    return SampleInputs(
        condition=embeds_condition(sd, embeds, negative_prompt_embeds, sizes),
        latents=jax.random.normal(jax.random.fold_in(key, 0), (len(labels), *program.latent_shape)),
        labels=labels,
        rows=labels,
        keys=_keys(jax.random.fold_in(key, 1), len(labels)),
    )


def _keys(key: jax.Array, number: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(number))


def stack(parts: list[PyTree]) -> PyTree:
    """What several inner steps are given, with a leading axis [K]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
