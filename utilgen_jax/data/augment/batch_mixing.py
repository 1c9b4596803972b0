"""Mixup and CutMix: pairs of images of a batch are mixed, and so are their targets."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

# (images [B, H, W, C], targets [B, K], key, alpha) -> the same shapes
Mixing = Callable[[jax.Array, jax.Array, jax.Array, float], tuple[jax.Array, jax.Array]]


def mixup(images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): λ times an image plus 1 - λ times another; jittable.

    Args:
        images: float [B, H, W, C].
        targets: float [B, K], such as one-hot or smoothed labels. The cross-entropy is linear in them, so that rows may
            be scaled by sample weights beforehand.
        key: PRNG key; one λ ~ Beta(alpha, alpha) per batch, and pairs by a permutation.
        alpha: positive; 1 on CIFAR and 0.2 on ImageNet in the paper.

    Returns:
        Mixed images and targets.
    """
    lam = _draw_lambda(key, alpha)
    partner = _draw_partners(key, len(images))
    return lam * images + (1 - lam) * images[partner], lam * targets + (1 - lam) * targets[partner]


def cutmix(images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a box of each image is replaced by another image's; jittable.

    Args:
        images: float [B, H, W, C].
        targets: float [B, K], see `mixup`; mixed in proportion to the area of the box inside the image.
        key: PRNG key; one box per batch, with the area 1 - λ, λ ~ Beta(alpha, alpha); pairs by a permutation.
        alpha: positive; 1 in the paper.

    Returns:
        Mixed images and targets.
    """
    mask = cut_mask(jax.random.fold_in(key, 2), _draw_lambda(key, alpha), *images.shape[1:3])
    partner = _draw_partners(key, len(images))
    share = mask.mean()
    mixed = jnp.where(mask[..., None], images[partner], images)
    return mixed, (1 - share) * targets + share * targets[partner]


def cut_mask(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """Draws CutMix's box: 1 - λ of the image's area, with its aspect ratio and a uniform centre, clipped to the image.

    Args:
        key: PRNG key of the centre.
        lam: λ in [0, 1], float scalar.
        height: height in pixels.
        width: width in pixels.

    Returns:
        bool [height, width], True inside the box.
    """
    middles = jax.random.uniform(key, (2,))

    def inside(length: int, middle: jax.Array) -> jax.Array:
        cut = jnp.floor(length * jnp.sqrt(1 - lam))
        low = jnp.floor(length * middle) - cut // 2
        return (jnp.arange(length) >= low) & (jnp.arange(length) < low + cut)

    return inside(height, middles[0])[:, None] & inside(width, middles[1])


def _draw_lambda(key: jax.Array, alpha: float) -> jax.Array:
    return jax.random.beta(jax.random.fold_in(key, 0), alpha, alpha)


def _draw_partners(key: jax.Array, number: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(key, 1), number)


MIXINGS: Mapping[str, Mixing] = {
    "none": lambda images, targets, key, alpha: (images, targets),
    "mixup": mixup,
    "cutmix": cutmix,
}
