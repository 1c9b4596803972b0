"""The update's outer gradient against finite differences in float64, for any generator."""

import dataclasses
from collections.abc import Callable
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
    data, batch = draw(data_shapes(program, sd.architecture), 0.3)
    known = {
        name: dataclasses.replace(part, targets=jax.nn.softmax(part.targets))
        for name in ("examples", "validation")
        if (part := getattr(batch, name)) is not None
    }
    batch = dataclasses.replace(batch, **known, class_counts=jnp.ones_like(batch.class_counts))
    shapes = jax.eval_shape(lambda: init_update(program, classifier, sd, data, KEY))
    start = draw(shapes, 0.1, seed=1)
    # What counts steps and moments starts at zero.
    zeros = jax.tree.map(jnp.zeros_like, (start.step, start.optimizer_state, start.outer_optimizer_state))
    start = dataclasses.replace(start, step=zeros[0], optimizer_state=zeros[1], outer_optimizer_state=zeros[2])
    start = dataclasses.replace(start, first_nonfinite=jax.tree.map(lambda leaf: leaf * 0 - 1, start.first_nonfinite))

    def run(outer: Any) -> tuple[float, Any]:
        state = jax.tree.map(jnp.copy, dataclasses.replace(start, outer=outer))
        state, metrics = joint_update(program, classifier, state, sd, data, batch, KEY)
        return float(metrics.validation_loss + metrics.penalty), state.outer

    found, expected = slopes(run, start.outer, level, STEPS[level], seed=2)
    return abs(found / expected - 1)


def slopes(
    run: Callable[[Any], tuple[float, Any]], outer: Any, level: str, step: float, seed: int
) -> tuple[float, float]:
    """The slope of a loss along a random direction of one part: by a plain step of length 1, and by differences.

    Args:
        run: outer level -> its loss, and the outer level after the step.
        outer: where.
        level: the part.
        step: of the difference.
        seed: of the direction.
    """
    _, moved = run(outer)
    gradient = jax.tree.map(jnp.subtract, outer, moved)
    chosen, rng = PARTS[level], np.random.default_rng(seed)
    direction = jax.tree.map(jnp.zeros_like, outer)
    ids = {id(leaf) for leaf in jax.tree.leaves(chosen(direction))}
    direction = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)) if id(leaf) in ids else leaf, direction
    )
    above, below = (
        run(jax.tree.map(lambda leaf, along, s=sign: leaf + s * step * along, outer, direction))[0] for sign in (1, -1)
    )
    return float(optax.tree.vdot(chosen(gradient), chosen(direction))), (above - below) / (2 * step)
