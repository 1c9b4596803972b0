"""Operations that a run has spent on what is counted simply: images by the sampler, and the final classifiers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from utilgen_jax.generator.stable_diffusion import expected_params
from utilgen_jax.runtime.flops import count_flops

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool

_BACKWARD = 2  # as much again for the gradient to the inputs, and to the weights


def spent_flops(experiment: Experiment, pool: GeneratedPool | None, num_trainings: int) -> dict[str, float]:
    """Counts by what the operations were spent on, see `runtime.flops.count_flops`.

    Args:
        experiment: whose generator and classifier they are.
        pool: that was sampled; None: there is none.
        num_trainings: of final classifiers.
    """
    seen, config = experiment.classifier_input, experiment.classifier_config
    forward = _of_classifier(experiment.classifier.module, (seen.image_size, seen.image_size, seen.channels))
    examples = config.steps * config.batch_size * num_trainings
    spent = {"Training of the final classifiers": float((1 + _BACKWARD) * forward * examples)}
    if pool is not None:
        architecture, sampling = experiment.generator.architecture, pool.spec.sampling(experiment.config)
        length = architecture.text_encoder.max_position_embeddings
        call = _of_unet(architecture.unet, architecture.latent_shape(sampling.size), length)
        calls = sampling.num_calls * (2 if sampling.guidance_scale > 1 else 1)
        spent["UNet, to sample the pool"] = float(len(pool.labels) * calls * call)
    return spent


@cache
def _of_classifier(module: Any, shape: tuple[int, ...]) -> int:
    """Of a classifier's forward pass on one image."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return _of_call(module, jax.eval_shape(module.init, jax.random.key(0), images), images)


@cache
def _of_unet(unet: Any, latent_shape: tuple[int, ...], length: int) -> int:
    """Of one call of a UNet, for one image and a prompt of so many tokens."""
    shapes = [
        jax.ShapeDtypeStruct((1, *latent_shape), unet.dtype),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, length, unet.cross_attention_dim), unet.dtype),
    ]
    if unet.label_width is not None:
        shapes.append(jax.ShapeDtypeStruct((1, unet.label_width), jnp.float32))
    return _of_call(unet, {"params": expected_params(unet)}, *shapes)


def _of_call(module: Any, variables: Any, *inputs: jax.ShapeDtypeStruct) -> int:
    return count_flops(jax.make_jaxpr(module.apply)(variables, *inputs))
