"""Captioners by name."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utilgen_jax.prompts.captions.glyphs import caption_glyphs
from utilgen_jax.prompts.captions.image_to_text import load_image_to_text
from utilgen_jax.prompts.captions.tones import caption_tones

# (images uint8 [B, H, W, C] with C 1 or 3, B class names) -> B captions to append to a class prompt; may be empty.
Captioner = Callable[[np.ndarray, Sequence[str]], list[str]]

CAPTIONERS: Mapping[str, Callable[[], Captioner]] = {
    "glyphs": lambda: caption_glyphs,
    "tones": lambda: caption_tones,
    "blip2": lambda: load_image_to_text("Salesforce/blip2-opt-2.7b"),  # as in arXiv 2307.08526
}


def make_captioner(name: str) -> Captioner:
    """Loads a captioner.

    Args:
        name: key of `CAPTIONERS`, or the hub id or folder of an image-to-text model of transformers.

    Raises:
        InputError: the model does not exist, does not caption images, or PyTorch is missing.
    """
    return CAPTIONERS[name]() if name in CAPTIONERS else load_image_to_text(name)
