"""What an image can start from besides words: a file with noise, a file with an image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What images start from besides words, each None where it is not given.

    Attributes:
        latents: starting noise, float32 [N, h, w, C].
        init_image: RGB image to start from.
        mask_image: RGB image, white where a checkpoint for inpainting is to generate and black where not.
        image_prompt: RGB image that conditions an unCLIP checkpoint.
    """

    latents: np.ndarray | None = None
    init_image: Image.Image | None = None
    mask_image: Image.Image | None = None
    image_prompt: Image.Image | None = None


def read_latents(file: Path, where: str) -> np.ndarray:
    """Reads starting noise from a `.npy` file, called `where` in an error: float32 [N, h, w, C].

    Raises:
        InputError: it cannot be read, or does not hold such an array of finite numbers.
    """
    try:
        latents = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{where}: cannot be read as an array that np.save wrote ({error})") from error
    if not isinstance(latents, np.ndarray) or latents.ndim != 4 or latents.dtype != np.float32 or not len(latents):
        kind = f"{latents.dtype} {list(latents.shape)}" if isinstance(latents, np.ndarray) else "several arrays"
        raise InputError(f"{where}: starting noise is one float32 array [N, h, w, channels], this holds {kind}")
    if not np.isfinite(latents).all():
        raise InputError(f"{where}: holds NaN or infinity; starting noise is standard normal")
    return latents


def image_size(image: Image.Image, height: int | None, width: int | None, multiple: int) -> tuple[int, int]:
    """The size (height, width) that an image to start from is scaled to.

    As in diffusers' StableDiffusionImg2ImgPipeline, a side that is not given is the image's own, cut down to a
    whole number of latents.
    """
    own_height, own_width = (max(side - side % multiple, multiple) for side in (image.height, image.width))
    return height or own_height, width or own_width


def scale_image(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An image to start from, scaled as diffusers' VaeImageProcessor does: Lanczos to that size, without cropping.

    Returns:
        Float32 [height, width, 3] in [-1, 1].
    """
    return to_float(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))


def scale_mask(image: Image.Image, height: int, width: int) -> np.ndarray:
    """A mask, scaled as diffusers does: Lanczos to that size, then grey, then black or white.

    Returns:
        Float32 [height, width, 1], 0 or 1.
    """
    grey = image.resize((width, height), Image.Resampling.LANCZOS).convert("L")
    return (np.asarray(grey)[..., None] / 255.0 >= 0.5).astype(np.float32)
