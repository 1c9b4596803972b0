"""The update's arguments before there are any: to compile it for machines and weights that are not here."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from utilgen_jax.bilevel import BilevelState, init_bilevel
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.train import initial_params
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion
from utilgen_jax.generator.text_states import PooledStates
from utilgen_jax.joint.program import JointData, JointProgram
from utilgen_jax.joint.regularizers import AnchorSet
from utilgen_jax.joint.step import first_inputs
from utilgen_jax.runtime.sharding import param_shardings


@dataclasses.dataclass(frozen=True)
class DataSizes:
    """How many there are of what an update learns from.

    Attributes:
        real: shots.
        held_out: shots that validate.
        pool: images of the generator as it is.
        anchors: such images, noised.
        prompts: for new images.
    """

    real: int
    held_out: int
    pool: int
    anchors: int
    prompts: int

    @classmethod
    def least(cls, program: JointProgram) -> DataSizes:
        """A batch of each, and what is generated; more of them lie in memory and change nothing else."""
        batch, generated = program.config.batch_size, program.joint.num_generated
        return cls(real=batch, held_out=batch, pool=batch, anchors=generated, prompts=generated)


def data_shapes(
    program: JointProgram, architecture: Architecture, sizes: DataSizes | None = None
) -> tuple[JointData, Examples]:
    """Shapes of what an update learns from, and of the held-out shots.

    Args:
        program: sizes of images and classes.
        architecture: of the generator.
        sizes: numbers of examples; None: the least.
    """
    sees, sizes = program.classifier_input, sizes or DataSizes.least(program)
    text = architecture.text_encoder.max_position_embeddings, architecture.unet.cross_attention_dim

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def embeds(number: int) -> Any:
        states = shape(number, *text, dtype=architecture.unet.dtype)
        if architecture.unet.pooled_width is None:
            return states
        return PooledStates(states, shape(number, architecture.unet.pooled_width, dtype=architecture.unet.dtype))

    def examples(number: int) -> Examples:
        return Examples(
            shape(number, sees.image_size, sees.image_size, sees.channels),
            shape(number, dtype=jnp.int32),
            weights=shape(number),
            difficulty=shape(number),
            attributes=shape(number, program.num_attributes),
            num_classes=sees.num_classes,
        )

    latents = shape(sizes.anchors, *program.latent_shape)
    anchors = AnchorSet(
        latents=latents,
        timesteps=shape(sizes.anchors, dtype=jnp.int32),
        labels=shape(sizes.anchors, dtype=jnp.int32),
        predictions=latents,
        class_embeds=embeds(sees.num_classes),
    )
    data = JointData(
        real=examples(sizes.real),
        pool=examples(sizes.pool),
        anchors=anchors if program.has_anchor else None,
        prompt_embeds=embeds(sizes.prompts),
        prompt_labels=shape(sizes.prompts, dtype=jnp.int32),
        prompt_attributes=shape(sizes.prompts, program.num_attributes),
        negative_prompt_embeds=embeds(1),
    )
    return data, examples(sizes.held_out)


def init_update(
    program: JointProgram, classifier: Classifier, sd: StableDiffusion, data: JointData, key: jax.Array
) -> BilevelState:
    """The state before the first update of a classifier that nothing has trained yet; pure."""
    outer = program.init_outer(sd.params, first_inputs(program, sd, data), None, key)
    params = initial_params(classifier, data.real.inputs.shape[1:], key)
    return init_bilevel(params, program.optimizer, outer, program.outer_optimizer, program.joint.ema_decay)


def update_shapes(
    program: JointProgram,
    classifier: Classifier,
    sd: StableDiffusion,
    mesh: Mesh,
    sizes: DataSizes | None = None,
) -> tuple[BilevelState, JointData, Examples, Any]:
    """Shapes of an update's state, data, held-out shots and PRNG key, laid out over a mesh as training has them.

    Args:
        program: of the update.
        classifier: of it; arrays or shapes.
        sd: the generator; arrays or shapes.
        mesh: of devices.
        sizes: see `data_shapes`.
    """
    data, held_out = data_shapes(program, sd.architecture, sizes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(partial(init_update, program, classifier), sd, data, key)
    whole = NamedSharding(mesh, PartitionSpec())
    data, held_out, key = jax.tree.map(lambda leaf: _laid_out(leaf, whole), (data, held_out, key))
    return jax.tree.map(_laid_out, state, param_shardings(state, mesh)), data, held_out, key


def _laid_out(shape: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
