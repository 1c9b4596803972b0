"""The update's outer gradient against finite differences in float64, for any generator."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.classifier.model import Classifier
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.joint.program import JointProgram
from utilgen_jax.joint.shapes import data_shapes, init_update
from utilgen_jax.joint.step import joint_update

PARTS = {
    "weights": lambda outer: outer["weighting"]["network"],
    "attributes": lambda outer: outer["weighting"]["attributes"],
    "lora": lambda outer: outer["adapter"].unet_lora,
    "difficulty": lambda outer: (outer["adapter"].difficulty_offset, outer["adapter"].difficulty_logits),
}
KEY = jax.random.key(4)


# Of a difference. The weight network has kinks. Through Stable Diffusion statistics and softmax are float32, whose last
# place a small difference would show.
STEPS = {"weights": 1e-5, "attributes": 3e-5, "lora": 3e-4, "difficulty": 1e-3}


def draw(shapes: Any, size: float, seed: int = 0) -> Any:
    """Random numbers of about this size in float64; class labels are in turn."""
    rng = np.random.default_rng(seed)

    def leaf(shape: Any) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(size * rng.standard_normal(shape.shape))
        return jnp.asarray(np.arange(np.prod(shape.shape, dtype=int)).reshape(shape.shape) % 3, shape.dtype)

    return jax.tree.map(leaf, shapes)


def relative_error(program: JointProgram, classifier: Classifier, sd: StableDiffusion, level: str) -> float:
    """Of the slope of validation loss and penalty along a random direction of one part of the outer level.

    To be called with 64 bits enabled, and with `JointProgram.outer_optimizer` a plain step of length 1.
    """
    sd = dataclasses.replace(sd, params=jax.tree.map(lambda leaf: leaf.astype(float), sd.params))
    data, validation = draw(data_shapes(program, sd.architecture), 0.3)
    labels = jax.nn.softmax(data.real.targets)
    data = dataclasses.replace(data, real=dataclasses.replace(data.real, targets=labels))
    validation = dataclasses.replace(validation, targets=jax.nn.softmax(validation.targets))
    shapes = jax.eval_shape(lambda: init_update(program, classifier, sd, data, KEY))
    start = draw(shapes, 0.1, seed=1)
    # What counts steps and moments starts at zero.
    zeros = jax.tree.map(jnp.zeros_like, (start.step, start.optimizer_state, start.outer_optimizer_state))
    start = dataclasses.replace(start, step=zeros[0], optimizer_state=zeros[1], outer_optimizer_state=zeros[2])
    start = dataclasses.replace(start, first_nonfinite=jax.tree.map(lambda leaf: leaf * 0 - 1, start.first_nonfinite))

    def run(outer: Any) -> tuple[float, Any]:
        state = jax.tree.map(jnp.copy, dataclasses.replace(start, outer=outer))
        state, metrics = joint_update(program, classifier, state, sd, data, validation, KEY)
        return float(metrics.validation_loss + metrics.penalty), state.outer

    _, moved = run(start.outer)
    slopes = jax.tree.map(jnp.subtract, start.outer, moved)
    chosen, rng = PARTS[level], np.random.default_rng(2)
    direction = jax.tree.map(jnp.zeros_like, start.outer)
    ids = {id(leaf) for leaf in jax.tree.leaves(chosen(direction))}
    direction = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)) if id(leaf) in ids else leaf, direction
    )
    size = STEPS[level]
    above, below = (
        run(jax.tree.map(lambda leaf, along, s=sign: leaf + s * size * along, start.outer, direction))[0]
        for sign in (1, -1)
    )
    expected = (above - below) / (2 * size)
    found = float(optax.tree.vdot(chosen(slopes), chosen(direction)))
    return abs(found / expected - 1)
