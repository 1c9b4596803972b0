"""Images of 16 or 32 bits and of floating-point numbers as 8 bits: by the range that the file tells, else a guess.

What is guessed is noted, and `decode_all` tells it with the number of images; what cannot be guessed is refused.
"""

import numpy as np
from PIL import Image

from utilgen_jax.data.decoding import note
from utilgen_jax.errors import InputError

_BITS_PER_SAMPLE = 258  # tag of TIFF
_DARK = 16383  # 14 bits of 16


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scales a grey image of more than 8 bits to 0..255; others are returned as they are.

    16 bits are scaled from 0..65535, or from what a TIFF or PGM file says. 32-bit integers and floating-point numbers
    have no range of their own: integers are taken for 0..255 or 0..65535, floats for 0..1 or 0..255, by the largest
    value.

    Raises:
        InputError: there are values in no such range.
    """
    if image.mode.startswith("I;16"):
        return _scaled(image, _top_of_16_bits(image))
    if image.mode == "I" and image.format == "PPM":
        return _scaled(image, 65535)  # Pillow has scaled it from the file's own maximum
    if image.mode == "I":
        return _scaled(image, _guessed_top(image, "32-bit integers", (255, 65535)))
    if image.mode == "F":
        return _scaled(image, _guessed_top(image, "floating-point numbers", (1, 255)))
    if _is_deep_colour(image):  # of which Pillow keeps the upper 8 bits
        _note_if_dark(256 * int(np.asarray(image.convert("RGB")).max()))
    return image


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a file that has just been opened has colours of 16 bits."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _top_of_16_bits(image: Image.Image) -> int:
    bits = int(np.max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 16)))
    if bits < 16:
        return 2**bits - 1
    _note_if_dark(int(np.asarray(image).max()))
    return 65535


def _note_if_dark(high: int) -> None:
    if 0 < high <= _DARK:
        note(
            f"of 16 bits hold no value above {_DARK} of 65535 and come out dark; where they have fewer bits, multiply "
            "their values: by 16 for 12 bits"
        )


def _guessed_top(image: Image.Image, kind: str, tops: tuple[int, int]) -> int:
    """The top of the smallest range that holds all values."""
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    for top in tops:
        if low >= 0 and high <= top:
            note(f"hold {kind} and are read as 0..{top}")
            return top
    raise InputError(
        f"its {kind} go from {low:g} to {high:g}, so that what is black and white is unknown; save it with 8 bits, "
        "0..255"
    )


def _scaled(image: Image.Image, top: int) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values / (top / 255)).astype(np.uint8))
