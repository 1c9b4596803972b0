"""Short texts on real images, to stand behind the class in a prompt: from models, from measures, or from a person."""

from utilgen_jax.prompts.captions.caption_file import read_captions
from utilgen_jax.prompts.captions.captioner import CAPTIONERS, Captioner, make_captioner
from utilgen_jax.prompts.captions.captioning import caption_images, caption_labelled_images

__all__ = ["CAPTIONERS", "Captioner", "caption_images", "caption_labelled_images", "make_captioner", "read_captions"]
