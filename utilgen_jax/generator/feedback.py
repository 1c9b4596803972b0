"""Feedback guidance: a classifier leads the sampler towards images of which it is unsure.

Askari-Hemmat et al. 2024 (arXiv 2310.00158), with the entropy of Deliberate Practice (Askari-Hemmat et al. 2025, arXiv
2502.15588). At each step the entropy of what the classifier says of the predicted clean image is differentiated in that
image's latents, not in the noisy ones: no gradient goes through the UNet. The step is normalised [ours], so that its
size does not depend on the classifier's scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax.tree_util import Partial

from utilgen_jax.diffusion.samplers import Denoiser
from utilgen_jax.diffusion.schedules import clean_and_noise, prediction_of
from utilgen_jax.generator.sampling import decode_latents
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.runtime.loops import map_in_parts


@struct.dataclass
class Feedback:
    """A classifier's opinion, followed while images are sampled.

    Attributes:
        predict: images float32 [B, H, W, 3] in [-1, 1] -> logits [B, K]; a pytree, with the classifier's parameters.
        scale: ω, by which fraction of its own length each predicted clean image is moved; below 0 towards images of
            which the classifier is sure.
        micro_batch_size: images whose gradient is computed at a time; 0: all. Static.
    """

    predict: Partial
    scale: jax.Array | float
    micro_batch_size: int = struct.field(pytree_node=False, default=0)

    def guide(self, sd: StableDiffusion, denoise: Denoiser) -> Denoiser:
        """Leads a denoiser.

        Args:
            sd: the checkpoint; the denoiser predicts what its schedule says.
            denoise: for latents whose variance is about one, see `Sampler.model_input`.
        """

        def entropy(clean: jax.Array) -> jax.Array:
            log_probabilities = jax.nn.log_softmax(self.predict(decode_latents(sd, clean)))
            return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities)

        def guided(latents: jax.Array, timestep: jax.Array) -> jax.Array:
            alpha = sd.schedule.alphas_cumprod[jnp.round(timestep).astype(jnp.int32)]
            kind = sd.schedule.prediction_type
            clean, _ = clean_and_noise(kind, denoise(latents, timestep), latents, alpha)
            gradient = map_in_parts(jax.grad(entropy), clean, self.micro_batch_size)
            moved = clean + self.scale * _norm(clean) * gradient / jnp.maximum(_norm(gradient), 1e-12)
            return prediction_of(kind, moved, latents, alpha)

        return guided


def _norm(latents: jax.Array) -> jax.Array:
    """Of each image, [B, 1, 1, 1]."""
    return jnp.sqrt(jnp.sum(latents**2, axis=(1, 2, 3), keepdims=True))
