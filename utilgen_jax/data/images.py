"""Images as arrays: decoding, conversion between uint8 and float, size and channels.

Real images (Pillow, uint8) and generated images (JAX, float) are scaled by the same filter: the mean of each block for
an integer factor down, else linear interpolation with antialiasing.
"""

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from utilgen_jax.data.decoding import decode_all, is_counted, note
from utilgen_jax.data.pixel_range import to_8_bits
from utilgen_jax.errors import InputError

# Formats whose further frames are images too, not previews, layers or sizes of the first one.
_ANIMATED = ("GIF", "TIFF", "PNG", "WEBP", "AVIF", "FLI", "DCX")
# Rec. 601 luma, as in Pillow's convert("L").
LUMINANCE = (0.299, 0.587, 0.114)


def to_float(images: Any) -> Any:
    """Converts uint8 in 0..255 to float32 in [-1, 1]; any shape, NumPy or JAX, with the same bits, jitted too."""
    # Whole numbers, then one rounding: nothing that a compiler could round otherwise.
    return (2.0 * images.astype(np.float32) - 255.0) * np.float32(1 / 255)


def as_floats(images: Any) -> Any:
    """Images that may be held as bytes, as `to_float` makes them; float ones as they are."""
    return to_float(images) if images.dtype == np.uint8 else images


def to_uint8(images: Any) -> Any:
    """Converts float, clipped to [-1, 1], to the nearest uint8; any shape, NumPy or JAX; the inverse of `to_float`."""
    return ((images + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)


def resize(images: jax.Array | np.ndarray, size: int) -> jax.Array:
    """Scales square images; jittable and differentiable.

    Args:
        images: float [B, S, S, C].
        size: new side in pixels; static under jit.

    Returns:
        float [B, size, size, C]: block means where size divides S, antialiased linear interpolation otherwise.
    """
    batch, height, width, channels = images.shape
    if height != width:
        raise ValueError(f"resize takes square images, got {height}x{width}")
    images = jnp.asarray(images)
    if height == size:
        return images
    if height % size == 0:
        factor = height // size
        return images.reshape(batch, size, factor, size, factor, channels).mean(axis=(2, 4))
    return jax.image.resize(images, (batch, size, size, channels), method="linear", antialias=True)


def set_channels(images: jax.Array | np.ndarray, channels: int) -> jax.Array:
    """Converts RGB to grey by luminance (Rec. 601), or grey to RGB; jittable and differentiable.

    Args:
        images: float [..., C] with C 1 or 3.
        channels: 1 or 3; static under jit.

    Returns:
        float [..., channels].
    """
    images = jnp.asarray(images)
    now = images.shape[-1]
    if now == channels:
        return images
    if (now, channels) == (3, 1):
        # Not a dot product, whose operands TPUs round to bfloat16.
        return (images * jnp.asarray(LUMINANCE, images.dtype)).sum(axis=-1, keepdims=True)
    if (now, channels) == (1, 3):
        return jnp.repeat(images, 3, axis=-1)
    raise ValueError(f"cannot convert {now} channels to {channels}; only 1 and 3 are supported")


def scaled(images: jax.Array | np.ndarray, size: int, channels: int) -> jax.Array:
    """Stored images as `to_float`, `resize` and `set_channels` make them, but for rounding.

    Bits do not depend on how many images there are, nor on their devices: sums are of whole numbers, or in one order.

    Args:
        images: uint8 [B, S, S, C] with C 1 or 3.
        size: new side in pixels.
        channels: 1 or 3.

    Returns:
        float32 [B, size, size, channels] in [-1, 1].
    """
    factor, rest = divmod(images.shape[1], size)
    if factor > 1 and not rest:
        floats = _block_sums(images, size).astype(jnp.float32) / (127.5 * factor**2) - 1.0
    else:
        floats = resize(to_float(jnp.asarray(images)), size)
    if (floats.shape[-1], channels) != (3, 1):
        return set_channels(floats, channels)
    red, green, blue = (floats[..., place : place + 1] * weight for place, weight in enumerate(LUMINANCE))
    return red + green + blue


@partial(jax.jit, static_argnames="size")
def _block_sums(images: jax.Array, size: int) -> jax.Array:
    """Sums over the blocks of images uint8 [B, S, S, C]: int32 [B, size, size, C]."""
    batch, height, _, channels = images.shape
    blocks = images.astype(jnp.int32).reshape(batch, size, height // size, size, height // size, channels)
    return blocks.sum(axis=(2, 4))


def plain_image(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to 8-bit grey (Rec. 601 luma) or RGB; scales deeper grey, composes transparency on white.

    Raises:
        InputError: the range of the values is unknown, see `pixel_range.to_8_bits`.
    """
    image = to_8_bits(image)  # Pillow's convert clips to 255 instead of scaling
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit_image(image: Image.Image, size: int, channels: int, place: float = 0.5) -> np.ndarray:
    """Crops the largest square of an image and scales it.

    Args:
        image: 8- or 16-bit image, see `plain_image`.
        size: side of the result in pixels.
        channels: 1 or 3 (RGB).
        place: of the square along the longer side, from 0, its beginning, to 1, its end.

    Returns:
        uint8 [size, size, channels].
    """
    image = plain_image(image, channels)
    if image.size != (size, size):
        side = min(image.size)
        left, top = int((image.width - side) * place), int((image.height - side) * place)
        kernel = Image.Resampling.BOX if side % size == 0 else Image.Resampling.BILINEAR
        image = image.resize((size, size), kernel, box=(left, top, left + side, top + side))
    return np.asarray(image).reshape(size, size, channels)


def read_encoded(file: Path) -> bytes:
    """The bytes of an image file; InputError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: the image cannot be read ({error.strerror})") from error


def open_image(file: Path | BinaryIO, where: str, channels: int = 3) -> Image.Image:
    """Decodes an image file and applies its EXIF rotation, see `plain_image`.

    Args:
        file: path or open binary file, in any format of Pillow.
        where: name of the image in errors.
        channels: 1 or 3.

    Raises:
        InputError: the file cannot be read or decoded, or the range of its values is unknown.
    """
    if not is_counted():  # what is to be told of it is told here
        opened: list[Image.Image] = []
        decode_all(where, 1, lambda _: opened.append(open_image(file, where, channels)))
        return opened[0]
    try:
        with Image.open(file) as image:
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                note("have several frames, of which the first one is read")
            return plain_image(ImageOps.exif_transpose(to_8_bits(image)), channels)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # Pillow's decoders raise various exceptions on broken files.
        raise InputError(f"{where}: the image cannot be decoded ({error}); replace or remove it") from error
