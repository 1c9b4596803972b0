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
    """Less the mean utility of the images; its gradient goes through as much of the sampler as `generate_images` lets
    it.

    That is reward backpropagation with the last steps only (Clark et al. 2024, arXiv:2309.17400, "DRaFT-K"). With the
    utility of `influence_utility`, it is the validation loss's gradient after a step on these images: the same that
    `bilevel.make_bilevel_update` takes, here in two programs, so that the classifier's memory and the generator's are
    not needed at once.

    It is the exact derivative: pixels that the decoder clips to black or white (12 % of a glyph image) have none. To
    let it through there made no difference (glyph domain, 20 updates, 2 seeds: 1.6060 for 1.6062, 1.3990 for 1.3992).

    Args:
        adapter: what is differentiated.
        sample inputs: M images.
        generate: `adapter.generate_images` with the rest of its arguments; its `num_differentiable_steps` last steps
            are computed again in the backward pass.
        utility: of images, differentiable.

    Returns:
        Scalar.
    """
    return -jnp.mean(utility(generate_images(adapter, sample_inputs), sample_inputs.labels))
