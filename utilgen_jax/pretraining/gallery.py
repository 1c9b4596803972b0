"""A domain's gallery: one image of its generator for each of a range of captions."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import initial_latents, sample
from utilgen_jax.pretraining.domain import Domain
from utilgen_jax.pretraining.sizes import IMAGE_SIZE
from utilgen_jax.report.contact_sheet import contact_sheet
from utilgen_jax.runtime.atomic_write import replace_file


def write_gallery(folder: Path, domain: Domain, num_steps: int = 25, guidance_scale: float = 2.0) -> Path:
    """Generates images of the domain's prompts (columns) with its endings (rows) and writes `<folder>/gallery.png`.

    All rows have the same starting noise, so that the effect of a word can be seen.
    """
    sd = load_stable_diffusion(folder)
    sampling = SamplingConfig(steps=num_steps, guidance_scale=guidance_scale, image_size=IMAGE_SIZE)
    latents = initial_latents(sd.architecture, np.arange(len(domain.prompts)), sampling.size)
    rows = []
    for ending in domain.endings:
        prompts = [prompt + (f", {ending}" if ending else "") for prompt in domain.prompts.values()]
        rows.append(sample(sd, text_condition(sd, prompts), latents, sampling))
    images = np.asarray((jnp.concatenate(rows) + 1.0) * 127.5).round().astype(np.uint8)
    titles = [ending or "(class alone)" for ending in domain.endings]
    sheet = contact_sheet(images, len(domain.prompts), row_titles=titles, column_titles=[*domain.prompts])
    with replace_file(folder / "gallery.png") as partial:
        sheet.save(partial, "png")
    return folder / "gallery.png"
