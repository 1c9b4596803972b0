"""The pathwise objective: the utility's own derivative, through decoder and sampler to the adapter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.generator.adapter import Adapter, GenerateImages
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.utility import Utility


def pathwise_loss(
    adapter: Adapter, sample_inputs: SampleInputs, *, generate_images: GenerateImages, utility: Utility
) -> jax.Array:
    """Minus the mean utility of the images.

    The gradient goes through the last steps of the sampler (Clark et al. 2024, arXiv 2309.17400, "DRaFT-K"). With the
    utility of `influence_utility` it is the gradient of the validation loss after a step on these images, which
    `bilevel.make_bilevel_update` takes in one program; here it takes two, so that the classifier's memory and the
    generator's are not needed at once. Pixels that the decoder clips to black or white have no gradient.

    Args:
        adapter: differentiated.
        sample_inputs: M images.
        generate_images: `adapter.generate_images` with the other arguments given; its last `num_differentiable_steps`
            steps are computed again in the backward pass.
        utility: of images, differentiable.

    Returns:
        Scalar.
    """
    return -jnp.mean(utility(generate_images(adapter, sample_inputs), sample_inputs.labels))
