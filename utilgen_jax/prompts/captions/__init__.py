"""Captions of real images for prompts: from image-to-text models, from image measurements, or from a file."""

from utilgen_jax.prompts.captions.caption_file import read_captions
from utilgen_jax.prompts.captions.captioner import CAPTIONERS, Captioner, make_captioner
from utilgen_jax.prompts.captions.captioning import caption_images, caption_labelled_images, check_captions

__all__ = [
    "CAPTIONERS",
    "Captioner",
    "caption_images",
    "caption_labelled_images",
    "check_captions",
    "make_captioner",
    "read_captions",
]
