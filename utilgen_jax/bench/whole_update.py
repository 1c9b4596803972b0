"""The joint method's update on random images, for `bench bilevel --update=whole`."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.bench.compiled import prepare_update
from utilgen_jax.bench.jax_unet import random_params
from utilgen_jax.bench.timing import Prepared
from utilgen_jax.bilevel import BilevelMetrics, BilevelState
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier, make_classifier
from utilgen_jax.config.schema import Config
from utilgen_jax.experiment.joint import joint_program
from utilgen_jax.generator.find_architecture import find_architecture
from utilgen_jax.generator.stable_diffusion import StableDiffusion, expected_params
from utilgen_jax.joint.program import JointProgram
from utilgen_jax.joint.shapes import data_shapes, init_update
from utilgen_jax.joint.step import joint_update

_SEED = 0


class WholeUpdate:
    """The update of a config's classifier and generator.

    Args:
        config: checked.
        architecture: name of a published one; None: that of the config's checkpoint. Its weights are random.
        num_classes: of the classifier.
    """

    def __init__(self, config: Config, architecture: str | None, num_classes: int) -> None:
        generator = config.generator
        found, self.origin = find_architecture(
            generator.checkpoint, generator.revision or None, architecture, dtype=jnp.dtype(generator.dtype)
        )
        shapes = {name: expected_params(module) for name, module in found.modules.items()}
        params = {name: random_params(shape, generator.dtype) for name, shape in shapes.items()}
        self.sd = StableDiffusion(found, params)
        sees = ClassifierInput(num_classes, config.data.image_size, config.data.channels)
        self.classifier = make_classifier(config.classifier, num_classes, sees.image_size, sees.channels)
        training = dataclasses.replace(config.classifier, synthetic_fraction=0.5)
        self.program = joint_program(config, training, sees, self.sd.architecture)

    def prepare(self, without: tuple[str, ...] = (), is_outer: bool = True) -> Prepared:
        """Compiles an update and runs it once.

        Args:
            without: names of `joint.program.LEVELS` and `REGULARIZERS`.
            is_outer: whether it updates the outer level; if not it is the classifier's plain step.
        """
        program = dataclasses.replace(self.program, without=without)
        data, batch = _draw(data_shapes(program, self.sd.architecture))
        key = jax.random.key(_SEED)
        # Random draws take long to compile: what is drawn here has the right shape alone.
        shapes = jax.eval_shape(lambda sd, data: init_update(program, self.classifier, sd, data, key), self.sd, data)
        state = _draw(shapes)
        given = batch if is_outer else dataclasses.replace(batch, validation=None, shots=None)

        update = partial(_update, program)
        return prepare_update(update, state, (self.classifier, self.sd, data, given, key))


def _update(
    program: JointProgram, state: BilevelState, classifier: Classifier, *arguments: Any
) -> tuple[BilevelState, BilevelMetrics]:
    return joint_update(program, classifier, state, *arguments)


def _draw(shapes: Any) -> Any:
    """Small random numbers of these shapes; class labels and counters are zero, second moments are not negative."""
    rng = np.random.default_rng(_SEED)

    def draw(leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.05 * np.abs(rng.standard_normal(leaf.shape, np.float32)), leaf.dtype)

    return jax.tree.map(draw, shapes)
