"""What keeps an adapter that is trained by utility near the generator, and its images near the real ones.

A gradient of the validation loss of a few images improves those images' classifier by any means, such as textures that
no other classifier reads. Both terms are added to the outer loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from utilgen_jax.diffusion.schedules import add_noise
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser, apply_adapter
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion


def anchor(sd: StableDiffusion, adapter: Adapter, sample_inputs: SampleInputs, key: jax.Array) -> jax.Array:
    """How far the adapter moves the noise predictions on the generator's own images: E ‖ε_φ - ε_0‖².

    The divergence of the adapted from the frozen model, up to a weight of the timesteps (DRaFT+, Clark et al. 2024,
    arXiv 2309.17400; DPOK, Fan et al. 2023, arXiv 2305.16381).

    Args:
        sd: the checkpoint.
        adapter: differentiated.
        sample_inputs: of M images; their `clean_latents` are those of images that the frozen generator made of the same
            prompts, and their `latents` are the noise.
        key: PRNG key of the timesteps.

    Returns:
        Scalar, a mean over images, pixels and channels.
    """
    clean = sample_inputs.clean_latents
    assert clean is not None
    timesteps = jax.random.randint(key, clean.shape[:1], 0, sd.schedule.num_train_timesteps)
    noisy = add_noise(sd.schedule, clean, sample_inputs.latents, timesteps)
    condition, _ = apply_adapter(adapter, sample_inputs)
    moved = adapter_denoiser(sd, adapter, condition, guidance_scale=1.0)(noisy, timesteps)
    frozen = adapter_denoiser(sd, Adapter(), sample_inputs.condition, guidance_scale=1.0)(noisy, timesteps)
    return jnp.mean((moved - jax.lax.stop_gradient(frozen)) ** 2)


def coverage(generated: jax.Array, generated_labels: jax.Array, real: jax.Array, real_labels: jax.Array) -> jax.Array:
    """The squared maximum mean discrepancy between generated and real images of the same classes, in features.

    MMD² = E k(g, g') + E k(r, r') - 2 E k(g, r), with a Gaussian kernel on pairs of one class and 0 on others, and the
    median distance for its width (Gretton et al. 2012; as a loss of a generator of training images: Real-Fake, Yuan et
    al. 2024, arXiv 2310.10402). The pairs of an image with itself are counted, so it is never negative.

    Args:
        generated: features, float32 [M, D].
        generated_labels: int [M].
        real: features, float32 [N, D].
        real_labels: int [N].

    Returns:
        Scalar in [0, 2].
    """
    features = jnp.concatenate([generated, jax.lax.stop_gradient(real)])
    labels = jnp.concatenate([generated_labels, real_labels])
    squares = jnp.sum(features**2, -1)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2 * features @ features.T, 0.0)
    width = jax.lax.stop_gradient(jnp.median(distances))
    kernel = jnp.exp(-distances / jnp.where(width > 0, width, 1.0)) * (labels[:, None] == labels[None])
    share = jnp.concatenate([jnp.full(len(generated), 1 / len(generated)), jnp.full(len(real), -1 / len(real))])
    return share @ kernel @ share
