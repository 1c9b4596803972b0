"""The update's arguments before there are any: to compile it for machines and weights that are not here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from utilgen_jax.bilevel import BilevelState, init_bilevel
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion
from utilgen_jax.generator.text_states import PooledStates
from utilgen_jax.joint.program import JointBatch, JointData, JointProgram
from utilgen_jax.joint.regularizers import AnchorSet
from utilgen_jax.joint.step import first_inputs


def data_shapes(program: JointProgram, architecture: Architecture) -> tuple[JointData, JointBatch]:
    """Shapes of what an update generates of, and of the images that it is given.

    Held-out shots are a batch, prompts and anchors as many as are generated; more of these lie in memory and change
    nothing else.

    Args:
        program: sizes of batch, images and classes.
        architecture: of the generator.
    """
    sees, batch, generated = program.classifier_input, program.config.batch_size, program.joint.num_generated
    text = architecture.text_encoder.max_position_embeddings, architecture.unet.cross_attention_dim

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def embeds(number: int) -> Any:
        states = shape(number, *text, dtype=architecture.unet.dtype)
        if architecture.unet.pooled_width is None:
            return states
        return PooledStates(states, shape(number, architecture.unet.pooled_width, dtype=architecture.unet.dtype))

    def examples(number: int, steps: tuple[int, ...] = ()) -> Examples:
        return Examples(
            shape(*steps, number, sees.image_size, sees.image_size, sees.channels),
            shape(*steps, number, sees.num_classes),
            is_weighted=shape(*steps, number, dtype=bool),
            difficulty=shape(*steps, number),
            attributes=shape(*steps, number, program.num_attributes),
        )

    inner_steps = (program.joint.inner_steps,) if program.joint.inner_steps > 1 else ()
    latents = shape(generated, *program.latent_shape)
    anchors = AnchorSet(
        latents=latents,
        timesteps=shape(generated, dtype=jnp.int32),
        labels=shape(generated, dtype=jnp.int32),
        predictions=latents,
        class_embeds=embeds(sees.num_classes),
    )
    data = JointData(
        anchors=anchors if program.has_anchor else None,
        prompt_embeds=embeds(generated),
        prompt_labels=shape(generated, dtype=jnp.int32),
        prompt_attributes=shape(generated, program.num_attributes),
        negative_prompt_embeds=embeds(1),
    )
    given = JointBatch(
        examples(batch, inner_steps),
        shape(sees.num_classes),
        validation=examples(batch),
        shots=examples(generated, inner_steps) if program.has_coverage else None,
    )
    return data, given


def init_update(
    program: JointProgram, classifier: Classifier, sd: StableDiffusion, data: JointData, key: jax.Array
) -> BilevelState:
    """The state before the first update of a classifier that nothing has trained yet; pure."""
    outer = program.init_outer(sd.params, first_inputs(program, sd, data), None, key)
    sees = program.classifier_input
    image = jnp.zeros((1, sees.image_size, sees.image_size, sees.channels))
    params = classifier.module.init(key, image)["params"]
    return init_bilevel(params, program.optimizer, outer, program.outer_optimizer, program.joint.ema_decay)
