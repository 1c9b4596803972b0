"""A domain's gallery: images that its generator generates for a range of captions."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.loading import load_generator
from utilgen_jax.generator.sampling import initial_latents, sample
from utilgen_jax.pretraining.domain import Domain
from utilgen_jax.pretraining.sizes import IMAGE_SIZE
from utilgen_jax.report.contact_sheet import contact_sheet


def write_gallery(folder: Path, domain: Domain, num_steps: int = 25, guidance_scale: float = 2.0) -> Path:
    """Generates images of the domain's prompts (columns) with its endings (rows) and writes `<folder>/gallery.png`.

    The images of a column share their initial noise, so that rows differ only by the attributes.
    """
    generator, params = load_generator(folder)
    latents = initial_latents(generator, np.arange(len(domain.prompts)), IMAGE_SIZE)
    rows = []
    for ending in domain.endings:
        prompts = [prompt + (f", {ending}" if ending else "") for prompt in domain.prompts.values()]
        condition = text_condition(generator, params, prompts)
        rows.append(sample(generator, params, condition, latents, num_steps=num_steps, guidance_scale=guidance_scale))
    images = np.asarray((jnp.concatenate(rows) + 1.0) * 127.5).round().astype(np.uint8)
    titles = [ending or "(class alone)" for ending in domain.endings]
    sheet = contact_sheet(images, len(domain.prompts), row_titles=titles, column_titles=[*domain.prompts])
    sheet.save(folder / "gallery.png")
    return folder / "gallery.png"
