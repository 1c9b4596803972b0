"""Words against images: in the embedded glyph domain, a printed digit is nearest to its own name."""

import jax
import numpy as np
import pytest

from utilgen_jax import checkpoints
from utilgen_jax.data.digits import CLASS_NAMES
from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError
from utilgen_jax.generator.clip_similarity import clip_similarity, embed_prompts, load_text_projection
from utilgen_jax.generator.clip_towers import image_tower_of
from utilgen_jax.generator.conditioning import encode_images
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.pretraining import glyphs


@pytest.mark.slow
def test_a_glyph_is_nearest_to_its_own_name():
    folder = checkpoints.resolve_checkpoint("glyphs")
    sd = load_stable_diffusion(folder)
    prompts = [f"a photo of the digit {name}" for name in CLASS_NAMES]
    anchors = embed_prompts(sd, load_text_projection(folder, sd.architecture), prompts)
    grey, _, labels = glyphs.corpus(100, seed=123)
    images = np.repeat(to_float(grey)[..., None], 3, axis=-1)
    cosines = np.stack([clip_similarity(image_tower_of(sd), images, anchor[None]) for anchor in anchors], axis=1)
    assert cosines.shape == (len(images), 10) and np.abs(cosines).max() <= 1.0 + 1e-6
    assert (cosines.argmax(1) == labels).mean() > 0.8
    embeds = encode_images(sd, images)
    np.testing.assert_allclose(clip_similarity(image_tower_of(sd), images, 3.0 * embeds), 1.0, rtol=1e-5)
    slope = jax.grad(lambda images: clip_similarity(image_tower_of(sd), images, anchors[:1]).sum())(images)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_without_an_image_encoder_it_is_refused(checkpoint, loaded):
    sd = loaded("sd15")
    with pytest.raises(InputError, match="has no image_encoder"):
        load_text_projection(checkpoint("sd15"), sd.architecture)
    with pytest.raises(InputError, match="has no image_encoder"):
        image_tower_of(sd)


def test_without_a_text_projection_the_way_out_is_told(checkpoint, loaded):
    with pytest.raises(InputError, match="no folder text_projection.*encode_images"):
        load_text_projection(checkpoint("unclip"), loaded("unclip").architecture)
