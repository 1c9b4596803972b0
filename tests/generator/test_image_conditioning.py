"""Real images reach the generator by the way it has: unCLIP's image embedding, or latents to start from."""

import jax.numpy as jnp
import numpy as np
import pytest
from utilgen_jax.generator.image_mixing import WAYS, augmentation_keys, find_way, mix_images

from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.image_conditioning import condition_on_images
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.sample.batches import SamplingConfig, _image_labels

SEEDS = np.array([3, 8])
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32))


@pytest.mark.slow
def test_unclip_is_told_the_embedding_in_all_ten_ways(loaded):
    generator, params = loaded("unclip")
    plain = text_condition(generator, params, ["the digit one"] * 2)
    told = {}
    for name in WAYS:
        way = find_way(name, has_image_encoder=True)
        condition, latents = condition_on_images(
            generator, params, plain, way, IMAGES, IMAGES[::-1], SEEDS, noise_level=5
        )
        assert latents is None and condition.prompt_embeds is plain.prompt_embeds
        assert condition.class_labels.shape == plain.class_labels.shape
        told[name] = np.asarray(condition.class_labels)
    assert len({labels.tobytes() for labels in told.values()}) == 10
    # Of one image they are what `generate_images` makes of an image prompt, which torch's pipeline checks.
    settings = {"num_steps": 2, "guidance_scale": 2.0, "scheduler": "ddim", "height": 16, "width": 16}
    sampling = SamplingConfig(**settings, image_prompt=np.asarray(IMAGES[0]), noise_level=5)
    wanted = _image_labels(generator, params, sampling, SEEDS)
    np.testing.assert_allclose(told["image"][0], wanted[0], atol=1e-5)


@pytest.mark.slow
def test_any_other_generator_starts_from_the_mixed_image(loaded):
    generator, params = loaded("sd15")
    plain = text_condition(generator, params, ["the digit one"] * 2)
    for name in ("image", "cutmix", "mixup"):
        way = find_way(name, has_image_encoder=False)
        condition, latents = condition_on_images(generator, params, plain, way, IMAGES, IMAGES[::-1], SEEDS)
        assert condition is plain
        mixed = mix_images(way, IMAGES, IMAGES[::-1], augmentation_keys(SEEDS))
        assert name != "image" or mixed is IMAGES
        np.testing.assert_allclose(latents, encode_to_latents(generator, params, mixed), atol=1e-5)
