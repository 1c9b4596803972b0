"""The glyph world's gallery: what it paints for a range of captions, as pictures to look at."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from utilgen_jax.foundation.recipe import IMAGE_SIZE
from utilgen_jax.foundation.vocabulary import DIGIT_NAMES
from utilgen_jax.generator.checkpoint import load_generator
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.sampling import initial_latents, sample
from utilgen_jax.report.contact_sheet import contact_sheet

CAPTION_ENDS = (
    "",
    "thin",
    "bold",
    "leaning left",
    "leaning right",
    "narrow",
    "wide",
    "small",
    "to the right",
    "grainy",
    "blurred",
    "bold, leaning right, serif",
)


def write_gallery(folder: Path, num_steps: int = 25, guidance_scale: float = 2.0) -> Path:
    """Paints ten digits (columns) for each of `CAPTION_ENDS` (rows) and writes `<folder>/gallery.png`.

    The same row of starting noise is used throughout, so that what a word changes can be seen.
    """
    generator, params = load_generator(folder)
    latents = initial_latents(generator, np.arange(len(DIGIT_NAMES)), IMAGE_SIZE)
    rows = []
    for end in CAPTION_ENDS:
        prompts = [f"a photo of the digit {name}" + (f", {end}" if end else "") for name in DIGIT_NAMES]
        condition = text_condition(generator, params, prompts)
        rows.append(sample(generator, params, condition, latents, num_steps=num_steps, guidance_scale=guidance_scale))
    images = np.asarray((jnp.concatenate(rows) + 1.0) * 127.5).round().astype(np.uint8)
    titles = [end or "(class alone)" for end in CAPTION_ENDS]
    sheet = contact_sheet(images, len(DIGIT_NAMES), row_titles=titles, column_titles=DIGIT_NAMES)
    sheet.save(folder / "gallery.png")
    return folder / "gallery.png"
