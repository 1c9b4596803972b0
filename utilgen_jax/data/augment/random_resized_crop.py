"""Random resized crops (Szegedy et al. 2015), as torchvision's RandomResizedCrop."""

import jax
import jax.numpy as jnp

_TRIES = 10  # as in torchvision


def random_resized_crop(
    images: jax.Array, keys: jax.Array, size: int, area: tuple[float, float] = (0.08, 1.0)
) -> jax.Array:
    """Crops a random box of each image and scales it; jittable.

    Args:
        images: float [B, S, S, C].
        keys: PRNG keys [B], one per image.
        size: side of the result in pixels.
        area: smallest and largest area of the box, over that of the image.

    Returns:
        float [B, size, size, C].
    """
    boxes = jax.vmap(lambda key: draw_box(key, images.shape[1], area))(keys)
    return resize_boxes(images, boxes, size)


def draw_box(key: jax.Array, side: int, area: tuple[float, float]) -> jax.Array:
    """Draws a box in a square image, uniform in area, log-uniform in aspect ratio in 3/4 .. 4/3, uniform in position.

    Args:
        key: PRNG key.
        side: side of the image in pixels.
        area: smallest and largest area of the box, over that of the image.

    Returns:
        int32 [4]: top, left, height, width; the whole image if none of ten draws fits.
    """
    draws = jax.random.uniform(key, (_TRIES + 1, 2))
    shapes, place = draws[:-1], draws[-1]
    pixels = side**2 * (area[0] + (area[1] - area[0]) * shapes[:, 0])
    aspect = (4 / 3) ** (2 * shapes[:, 1] - 1)
    sizes = jnp.stack([jnp.sqrt(pixels / aspect), jnp.sqrt(pixels * aspect)], axis=1).round().astype(jnp.int32)
    fits = ((sizes > 0) & (sizes <= side)).all(axis=1)
    size = jnp.where(fits.any(), sizes[jnp.argmax(fits)], side)
    corner = jnp.floor(place * (side - size + 1)).astype(jnp.int32)
    return jnp.concatenate([jnp.minimum(corner, side - size), size])


def resize_boxes(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Scales a box of each image, linearly with antialiasing, as Pillow's `resize` with `box`.

    Args:
        images: float [B, S, S, C].
        boxes: int [B, 4]: top, left, height, width.
        size: side of the result in pixels.

    Returns:
        float [B, size, size, C].
    """

    def one(image: jax.Array, box: jax.Array) -> jax.Array:
        scale = size / box[2:]
        shape = (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -box[:2] * scale, "linear", antialias=True)

    return jax.vmap(one)(images, boxes)
