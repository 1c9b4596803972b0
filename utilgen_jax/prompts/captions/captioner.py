"""Who says what is in an image: the table of captioners by name."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utilgen_jax.prompts.captions.glyphs import caption_glyphs
from utilgen_jax.prompts.captions.image_to_text import load_image_to_text
from utilgen_jax.prompts.captions.tones import caption_tones

# (uint8 [B, H, W, C] with C 1 or 3, B class names) -> B short texts, to stand behind the class's name in a prompt; ''
# where there is nothing to say.
Captioner = Callable[[np.ndarray, Sequence[str]], list[str]]

CAPTIONERS: Mapping[str, Callable[[], Captioner]] = {
    "glyphs": lambda: caption_glyphs,
    "tones": lambda: caption_tones,
    "blip2": lambda: load_image_to_text("Salesforce/blip2-opt-2.7b"),  # the one of arXiv 2307.08526
}


def make_captioner(name: str) -> Captioner:
    """Loads a captioner.

    Args:
        name: One of `CAPTIONERS`; otherwise the hub id or the folder of an image-to-text model for transformers.

    Raises:
        InputError: There is no such model, it is none that captions images, or PyTorch is missing.
    """
    return CAPTIONERS[name]() if name in CAPTIONERS else load_image_to_text(name)
