"""Augmented conditioning (arXiv 2502.04475): the generator starts from real images, mixed by one of ten strategies.

An unCLIP generator is given the image embedding of the mix, or the mix of two image embeddings; any other one starts
from the mixed image (SDEdit). Both images of a mix are of one class, whose label is kept. The settings are the paper's:
Beta(1, 1), dropout 0.4. Two things differ from its released code: Embed-CutMix cuts along the features, not along the
batch, and sources are the labelled shots alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.data.augment.batch_mixing import cut_mask
from utilgen_jax.data.augment.random_resized_crop import random_resized_crop
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition, encode_images, image_class_labels
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.generator.seeds import folded_keys, seed_keys
from utilgen_jax.generator.stable_diffusion import StableDiffusion

# (first [B, ...], second [B, ...], PRNG keys [B]) -> their mix, and how much of it is of the first: λ [B]
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

DROPOUT = 0.4
_CROP_FIRST, _CROP_SECOND, _LAMBDA, _PLACE, _DROPOUT = range(5)  # folded into an image's key
_AUGMENTATION = 3  # folded into an image's seed, for which `sampling` and `conditioning` use other numbers


def augmentation_keys(seeds: np.ndarray) -> jax.Array:
    """PRNG keys [B] of mixing and dropout, each from its image's own seed, int [B]."""
    return folded_keys(seed_keys(seeds), _AUGMENTATION)


def mixup_pairs(first: jax.Array, second: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """λ of the first and 1 - λ of the second, λ ~ Beta(1, 1) for each pair: arrays [B, ...], and λ float [B]."""
    lam = _draw_lambda(keys)
    share = lam.reshape(-1, *[1] * (first.ndim - 1))
    return share * first + (1 - share) * second, lam


def cutmix_images(first: jax.Array, second: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A box of the second image in the first, see `batch_mixing.cut_mask`.

    Args:
        first: float [B, H, W, C].
        second: the same.
        keys: PRNG keys [B].

    Returns:
        Images [B, H, W, C], and the share of each that is of the first, float [B].
    """
    height, width = first.shape[1:3]
    masks = jax.vmap(lambda key, lam: cut_mask(key, lam, height, width))(_fold(keys, _PLACE), _draw_lambda(keys))
    return jnp.where(masks[..., None], second, first), 1 - masks.mean(axis=(1, 2))


def cutmix_embeds(first: jax.Array, second: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A run of features of the second embedding in the first, anywhere: [B, E], and the first's share, float [B]."""
    width = first.shape[-1]

    def inside(key: jax.Array, lam: jax.Array) -> jax.Array:
        cut = jnp.round(width * (1 - lam)).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, width - cut + 1)
        return (jnp.arange(width) >= start) & (jnp.arange(width) < start + cut)

    masks = jax.vmap(inside)(_fold(keys, _PLACE), _draw_lambda(keys))
    return jnp.where(masks, second, first), 1 - masks.mean(axis=1)


def crop_pairs(mix: Mix) -> Mix:
    """The mix of random parts of two images, each scaled to the whole, see `random_resized_crop`."""

    def mix_crops(first: jax.Array, second: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        side = first.shape[1]
        first = random_resized_crop(first, _fold(keys, _CROP_FIRST), side)
        second = random_resized_crop(second, _fold(keys, _CROP_SECOND), side)
        return mix(first, second, keys)

    return mix_crops


@dataclasses.dataclass(frozen=True)
class MixStrategy:
    """How two images, or their embeddings, become one condition.

    Attributes:
        images: mixes two images; None: the first image as it is.
        embeds: mixes two image embeddings; None: that of the (mixed) image.
        dropout: the probability of each entry of the embedding to be zeroed; the others are not scaled up.
    """

    images: Mix | None = None
    embeds: Mix | None = None
    dropout: float = 0.0

    @property
    def needs_image_encoder(self) -> bool:
        """Whether it acts on image embeddings, which img2img does not have."""
        return self.embeds is not None or self.dropout > 0.0


_PLAIN: Mapping[str, MixStrategy] = {
    "image": MixStrategy(),
    "cutmix": MixStrategy(images=crop_pairs(cutmix_images)),
    "mixup": MixStrategy(images=crop_pairs(mixup_pairs)),
    "embed_cutmix": MixStrategy(embeds=cutmix_embeds),
    "embed_mixup": MixStrategy(embeds=mixup_pairs),
}
MIX_STRATEGIES: Mapping[str, MixStrategy] = {
    **_PLAIN,
    **{f"{name}_dropout": dataclasses.replace(strategy, dropout=DROPOUT) for name, strategy in _PLAIN.items()},
}


def find_mix_strategy(name: str, has_image_encoder: bool) -> MixStrategy:
    """One of `MIX_STRATEGIES`; InputError if the name is unknown or the generator lacks the image encoder for it."""
    possible = [known for known, each in MIX_STRATEGIES.items() if has_image_encoder or not each.needs_image_encoder]
    if name in possible:
        return MIX_STRATEGIES[name]
    reason = "this generator has no image encoder and starts from the mixed image itself (img2img); "
    known = ", ".join(possible)
    raise InputError(
        f"augmented conditioning {name!r}: {reason if name in MIX_STRATEGIES else ''}the strategies are {known}"
    )


def plan_sources(labels: np.ndarray, target_labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws two real images of its class for each image to generate; twice the same if the class has only one.

    Args:
        labels: int [N] of the real images, the k shots.
        target_labels: int [M] of the images to generate.
        rng: the draws.

    Returns:
        int64 [M, 2], indices into the real images; a strategy that needs one takes the first.

    Raises:
        ValueError: a class has no real image.
    """
    sources = np.empty((len(target_labels), 2), np.int64)
    for label in np.unique(target_labels):
        members, rows = np.flatnonzero(labels == label), np.flatnonzero(target_labels == label)
        if not len(members):
            raise ValueError(f"class {label} has no real image to condition on")
        first = rng.integers(len(members), size=len(rows))
        # From 1 to the end: any member but the first, if there is another.
        step = rng.integers(1, max(len(members), 2), size=len(rows))
        sources[rows] = members[np.stack([first, (first + step) % len(members)], axis=1)]
    return sources


def condition_on_images(
    sd: StableDiffusion,
    condition: Condition,
    strategy: MixStrategy,
    first: jax.Array,
    second: jax.Array,
    seeds: np.ndarray,
    noise_level: int = 0,
) -> tuple[Condition, jax.Array | None]:
    """Adds real images to a condition.

    Args:
        sd: a checkpoint; an unCLIP one is conditioned on the image embedding, any other one starts from the image.
        condition: of B images, see `conditioning.text_condition`.
        strategy: see `find_mix_strategy`.
        first: float32 [B, S, S, 3] in [-1, 1]; without an image encoder S is the side of the images to generate.
        second: the same; each of the class of its first.
        seeds: int [B], 0 .. 2**64 - 1; all that is random follows from an image's own.
        noise_level: of the noise on image embeddings, see `conditioning.noise_image_embeds`; 0 in the paper.

    Returns:
        The condition, and latents float32 [B, h, w, C] for `sampling.sample` to start from; None with an image encoder.
    """
    keys = augmentation_keys(seeds)
    if sd.image_encoder is None:
        return condition, encode_to_latents(sd, mix_images(strategy, first, second, keys))
    embeds = mix_image_embeds(strategy, partial(encode_images, sd), first, second, keys)
    return dataclasses.replace(condition, class_labels=image_class_labels(sd, embeds, seeds, noise_level)), None


@partial(jax.jit, static_argnums=0)
def _mix(mix: Mix, first: jax.Array, second: jax.Array, keys: jax.Array) -> jax.Array:
    return mix(first, second, keys)[0]


def mix_images(strategy: MixStrategy, first: jax.Array, second: jax.Array, keys: jax.Array) -> jax.Array:
    """Mixes images, float [B, S, S, C] each; `keys` [B] are from `augmentation_keys`."""
    return first if strategy.images is None else _mix(strategy.images, first, second, keys)


def mix_image_embeds(
    strategy: MixStrategy,
    encode: Callable[[jax.Array], jax.Array],
    first: jax.Array,
    second: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """The image embedding that a strategy makes of two images.

    Args:
        strategy: any.
        encode: image embeddings [B, E] of images, such as `conditioning.encode_images`.
        first: float [B, S, S, C].
        second: the same.
        keys: PRNG keys [B] from `augmentation_keys`.

    Returns:
        Float [B, E].
    """
    if strategy.embeds is None:
        embeds = encode(mix_images(strategy, first, second, keys))
    else:
        embeds = _mix(strategy.embeds, encode(first), encode(second), keys)
    return drop_entries(embeds, keys, strategy.dropout) if strategy.dropout else embeds


@partial(jax.jit, static_argnames="share")
def drop_entries(embeds: jax.Array, keys: jax.Array, share: float) -> jax.Array:
    """Zeroes each entry of [B, E] with probability `share`, by each row's own key, and leaves the others alone."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - share, embeds.shape[1:]))(_fold(keys, _DROPOUT))
    return jnp.where(kept, embeds, 0)


def _draw_lambda(keys: jax.Array) -> jax.Array:
    """λ ~ Beta(1, 1), which is uniform, of each key: float [B]."""
    return jax.vmap(jax.random.uniform)(_fold(keys, _LAMBDA))


def _fold(keys: jax.Array, use: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)
