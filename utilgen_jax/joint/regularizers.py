"""What keeps an adapter that is trained by utility near the generator, and its images near the real ones.

A gradient of the validation loss of a few images improves those images' classifier by any means, such as textures that
no other classifier reads. Both terms are added to the outer loss.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax.diffusion.schedules import add_noise
from utilgen_jax.generator.adapter import Adapter, adapter_denoiser
from utilgen_jax.generator.conditioning import embeds_condition
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import ImageSizes, TextStates
from utilgen_jax.runtime.sharding import to_host


@struct.dataclass
class AnchorSet:
    """Noised images of the frozen generator, and what it predicts of them.

    Attributes:
        latents: at the level of their timestep, float32 [N, h, w, C].
        timesteps: int32 [N].
        labels: classes of the images, int32 [N].
        predictions: of the frozen generator, float32 [N, h, w, C].
        class_embeds: text states of each class's prompt, [K].
    """

    latents: jax.Array
    timesteps: jax.Array
    labels: jax.Array
    predictions: jax.Array
    class_embeds: TextStates


def make_anchor_set(
    sd: StableDiffusion,
    latents_of: Callable[[np.ndarray], jax.Array],
    labels: np.ndarray,
    class_embeds: TextStates,
    sizes: tuple[int, int],
    key: jax.Array,
) -> AnchorSet:
    """Noises images of the frozen generator, and has it predict.

    Args:
        sd: the checkpoint.
        latents_of: gives the latents of images by their rows, int [n] -> float32 [n, h, w, C].
        labels: of the images, int [N].
        class_embeds: see `AnchorSet`.
        sizes: about how many noised images, and how many at a time.
        key: PRNG key of images, timesteps and noise.
    """
    number, batch_size = sizes
    number = -(-number // batch_size) * batch_size  # batches of one shape
    drawn = to_host(jax.random.randint(jax.random.fold_in(key, 0), (number,), 0, len(labels)))
    rows, places = np.unique(drawn, return_inverse=True)
    clean = latents_of(np.pad(rows, (0, -len(rows) % batch_size), mode="edge"))[places]
    timesteps = jax.random.randint(jax.random.fold_in(key, 1), (number,), 0, sd.schedule.num_train_timesteps)
    noise = jax.random.normal(jax.random.fold_in(key, 2), clean.shape)
    noisy, classes = add_noise(sd.schedule, clean, noise, timesteps), jnp.asarray(labels[drawn], jnp.int32)
    predictions = []
    for start in range(0, number, batch_size):
        part = slice(start, start + batch_size)
        predictions.append(_predict(sd, class_embeds[classes[part]], noisy[part], timesteps[part]))
    return AnchorSet(noisy, timesteps, classes, jnp.concatenate(predictions), class_embeds)


@jax.jit
def _predict(sd: StableDiffusion, embeds: TextStates, noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
    condition = embeds_condition(sd, embeds, sizes=ImageSizes.of_latents(sd.architecture, noisy.shape))
    return adapter_denoiser(sd, Adapter(), condition, guidance_scale=1.0)(noisy, timesteps)


@struct.dataclass
class AnchorBatch:
    """M of an `AnchorSet`.

    Attributes:
        inputs: their prompts and noisy latents.
        timesteps: int32 [M].
        predictions: float32 [M, h, w, C].
    """

    inputs: SampleInputs
    timesteps: jax.Array
    predictions: jax.Array


def anchor(predictions: jax.Array, batch: AnchorBatch) -> jax.Array:
    """How far the adapter moves the noise predictions on the generator's own images: E ‖ε_φ - ε_0‖².

    The divergence of the adapted from the frozen model, up to a weight of the timesteps (DRaFT+, Clark et al. 2024,
    arXiv 2309.17400; DPOK, Fan et al. 2023, arXiv 2305.16381).

    Args:
        predictions: of the batch with the adapter, [M, h, w, C]; differentiated.
        batch: of M images.

    Returns:
        Scalar, a mean over images, pixels and channels.
    """
    return jnp.mean((predictions - batch.predictions) ** 2)


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
