"""The programs that are run, one row each: called on shapes alone, so that no weights are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from utilgen_jax.classifier.model import Classifier
from utilgen_jax.config.schema import Config
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.sampling import sample
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion, expected_params
from utilgen_jax.generator.text_states import PooledStates
from utilgen_jax.joint.program import JointProgram
from utilgen_jax.joint.shapes import data_shapes, init_update
from utilgen_jax.joint.step import joint_update
from utilgen_jax.methods import METHODS
from utilgen_jax.plan.compiling import Call
from utilgen_jax.runtime.sharding import BATCH_AXES, param_shardings

NUM_CLASSES = 1000  # of the classifier; known once data are read, and of little weight


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """What is to run, and on which chips.

    Attributes:
        architecture: the generator's; its modules' dtype is that of activations.
        mesh: from `topology.topology_mesh`.
        dtype: the weights are stored in it.
        config: of the methods; the generator's batch size counts the images over all chips.
        classifier: for `NUM_CLASSES` classes.
        joint: the update of the method `joint`, of as many images as the sampler.
    """

    architecture: Architecture
    mesh: Mesh
    dtype: jnp.dtype
    config: Config
    classifier: Classifier
    joint: JointProgram

    @property
    def sampling(self) -> SamplingConfig:
        """Of the method's images."""
        pool = METHODS[self.config.method].pool
        return self.config.generator if pool is None else pool.sampling(self.config)

    def params(self) -> dict[str, Any]:
        """The generator's weights by component: shapes, split over the chips by the rules of `parallel`."""
        shapes = {name: expected_params(module) for name, module in self.architecture.modules.items()}
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, self.dtype, sharding=sharding),
            shapes,
            param_shardings(shapes, self.mesh),
        )

    def batch(self, *shape: int, dtype: jnp.dtype = jnp.float32, number: int = 0) -> Any:
        """An array of examples of a shape, as many as the generator's batch has or `number`.

        Split over all chips, where they divide it, as `runtime.sharding.split_batch` does.
        """
        number = number or self.sampling.batch_size
        axes = (BATCH_AXES,) if number % self.mesh.size == 0 else ()
        sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((number, *shape), dtype, sharding=sharding)

    def latents(self, number: int = 0) -> Any:
        """Latents of the images."""
        return self.batch(*self.architecture.latent_shape(self.sampling.size), number=number)

    def prompt_embeds(self, number: int = 0) -> Any:
        """CLIP text states of the images' prompts."""
        encoder, unet = self.architecture.text_encoder, self.architecture.unet
        return self.batch(encoder.max_position_embeddings, unet.cross_attention_dim, dtype=unet.dtype, number=number)

    def text_states(self, number: int = 0) -> Any:
        """The same with the pooled states, where the checkpoint has them."""
        unet = self.architecture.unet
        if unet.pooled_width is None:
            return self.prompt_embeds(number)
        pooled = self.batch(unet.pooled_width, dtype=unet.dtype, number=number)
        return PooledStates(self.prompt_embeds(number), pooled)

    def class_labels(self, number: int = 0) -> Any:
        """unCLIP's image embeddings, or XL's pooled states and sizes; None where the UNet takes neither."""
        width = self.architecture.unet.label_width
        return None if width is None else self.batch(width, number=number)

    def image_labels(self, number: int) -> Any:
        """unCLIP's image embeddings beside the images that are trained on; None for any other checkpoint."""
        return self.class_labels(number) if self.architecture.unet.pooled_width is None else None

    def condition(self) -> Condition:
        """Of the images that are sampled."""
        embeds, labels = self.prompt_embeds(), self.class_labels()
        negative = None if self.architecture.unet.pooled_width is None else labels
        return Condition(embeds, embeds, labels, negative_class_labels=negative)

    def split(self, tree: Any) -> Any:
        """The shapes of a pytree of examples, split over all chips where they divide it."""
        return jax.tree.map(lambda leaf: self.batch(*leaf.shape[1:], dtype=leaf.dtype, number=leaf.shape[0]), tree)

    def replicated(self, tree: Any) -> Any:
        """The shapes of a pytree's arrays, whole on every chip."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)


@dataclasses.dataclass(frozen=True)
class Program:
    """A row of the plan.

    Attributes:
        help: what it computes.
        call: (run, the generator's weights by component) -> the program and its arguments.
        components: whose weights it takes; the generator's others lie in memory beside it.
        has_gradient: through the UNet, so that gradient checkpointing saves memory.
        batch: the config's field of the images, or pairs, of a step.
        micro_batch: of those of them that are worked on at a time; "": there is none.
    """

    help: str
    call: Callable[[PlannedRun, Mapping[str, Any]], Call]
    components: tuple[str, ...]
    has_gradient: bool = False
    batch: str = "generator.batch_size"
    micro_batch: str = ""


def _unet(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    forward = jax.jit(lambda weights, *inputs: run.architecture.unet.apply({"params": weights}, *inputs))
    timesteps = run.batch(dtype=jnp.int32)
    return Call(forward, (params["unet"], run.latents(), timesteps, run.prompt_embeds(), run.class_labels()))


def _sample(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    sd = StableDiffusion(run.architecture, dict(params))
    return Call(
        sample, (sd, run.condition(), run.latents(), run.sampling), {"keys": run.batch(dtype=key_shape().dtype)}
    )


def _bilevel(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    """Of as many images as `joint.shapes` says."""
    sd = StableDiffusion(run.architecture, dict(params))
    data, batch = data_shapes(run.joint, run.architecture)
    shapes = jax.eval_shape(partial(init_update, run.joint, run.classifier), sd, data, key_shape())
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(shapes, run.mesh),
    )
    data, key = run.replicated((data, key_shape()))
    return Call(joint_update, (run.joint, run.classifier, state, sd, data, run.split(batch), key))


def key_shape() -> jax.ShapeDtypeStruct:
    """Of a PRNG key."""
    return jax.eval_shape(lambda: jax.random.key(0))


PROGRAMS: Mapping[str, Program] = {
    "unet": Program("one forward pass of the UNet", _unet, ("unet",)),
    "sample": Program("the sampler, all its steps, and the decoder", _sample, ("unet", "vae")),
    "bilevel": Program(
        "the bilevel update of the method joint: config.classifier, weight network, LoRA, difficulty encoder",
        _bilevel,
        ("unet", "vae"),
        has_gradient=True,
        micro_batch="joint.micro_batch_size",
    ),
}
