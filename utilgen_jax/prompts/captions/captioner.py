"""Captioners by name."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utilgen_jax.prompts.captions.glyphs import caption_glyphs
from utilgen_jax.prompts.captions.image_to_text import check_image_to_text, load_image_to_text
from utilgen_jax.prompts.captions.tones import caption_tones

# (images uint8 [B, H, W, C] with C 1 or 3, B class names) -> B captions to append to a class prompt; may be empty.
Captioner = Callable[[np.ndarray, Sequence[str]], list[str]]

_MEASURES: Mapping[str, Captioner] = {"glyphs": caption_glyphs, "tones": caption_tones}
# Name -> hub id.
_MODELS: Mapping[str, str] = {"blip2": "Salesforce/blip2-opt-2.7b"}  # as in arXiv 2307.08526
CAPTIONERS = (*_MEASURES, *_MODELS)


def make_captioner(name: str) -> Captioner:
    """Loads a captioner.

    Args:
        name: one of `CAPTIONERS`, or the hub id or folder of an image-to-text model of transformers.

    Raises:
        InputError: the model does not exist, does not caption images, or PyTorch is missing.
    """
    return _MEASURES[name] if name in _MEASURES else load_image_to_text(_MODELS.get(name, name))


def check_captioner(name: str) -> None:
    """Raises what `make_captioner` would, as far as that is known without loading a model."""
    if name not in _MEASURES:
        check_image_to_text(_MODELS.get(name, name))
