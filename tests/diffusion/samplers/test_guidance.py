"""Classifier-free guidance against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from utilgen_jax.diffusion.samplers import UNetInputs, guided, guided_beside


def apply_fake_unet(latents, timesteps, embeds, labels):
    """A denoiser that is linear in the condition, with a closed form of guidance."""
    assert len(latents) == len(timesteps) == len(embeds)
    output = latents * 0.5 + timesteps[:, None, None, None] + embeds.mean((1, 2))[:, None, None, None]
    return output if labels is None else output + labels.sum(1)[:, None, None, None]


@pytest.mark.parametrize("with_labels", [False, True])
def test_guidance_moves_from_the_unconditional_to_the_conditional_prediction(with_labels):
    rng = np.random.default_rng(2)
    latents, embeds, negative = (jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 2, 4), (3, 5, 6), (3, 5, 6)))
    labels = jnp.asarray(rng.normal(size=(3, 8))) if with_labels else None
    timesteps = jnp.full((3,), 7)
    conditional = apply_fake_unet(latents, timesteps, embeds, labels)
    # As in StableUnCLIPImg2ImgPipeline, the unconditional branch has zero image embeddings.
    unconditional = apply_fake_unet(latents, timesteps, negative, None)
    denoise = guided(apply_fake_unet, embeds, negative, labels, 5.0)
    expected = unconditional + 5.0 * (conditional - unconditional)
    np.testing.assert_allclose(denoise(latents, jnp.int32(7)), expected, rtol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    rng = np.random.default_rng(4)
    unconditional, conditional = rng.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    apply_unet = lambda *_: jnp.concatenate([unconditional, conditional])
    denoise = guided(apply_unet, jnp.ones((3, 5, 6)), jnp.ones((3, 5, 6)), None, 5.0, rescale)
    output = torch.tensor(unconditional + 5.0 * (conditional - unconditional))
    expected = rescale_noise_cfg(output, torch.tensor(conditional), guidance_rescale=rescale)
    np.testing.assert_allclose(denoise(jnp.ones((3, 2, 2, 4)), jnp.int32(7)), expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_unconditional_branch_is_not_computed(scale):
    sizes = []

    def apply_unet(latents, timesteps, embeds, labels):
        sizes.append(len(latents))
        return apply_fake_unet(latents, timesteps, embeds, labels)

    latents, embeds = jnp.ones((3, 2, 2, 4)), jnp.ones((3, 5, 6))
    denoise = guided(apply_unet, embeds, jnp.full_like(embeds, jnp.nan), None, scale)
    expected = apply_fake_unet(latents, jnp.full((3,), 7), embeds, None)
    np.testing.assert_array_equal(denoise(latents, jnp.int32(7)), expected)
    assert sizes == [3]


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("with_labels", [False, True])
def test_other_latents_are_predicted_in_the_same_call(scale, with_labels):
    rng = np.random.default_rng(3)
    latents, embeds, negative = (jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 2, 4), (3, 5, 6), (3, 5, 6)))
    labels = [jnp.asarray(rng.normal(size=(number, 8))) if with_labels else None for number in (3, 2)]
    others = UNetInputs(
        jnp.asarray(rng.normal(size=(2, 2, 2, 4))),
        jnp.array([4, 9]),
        jnp.asarray(rng.normal(size=(2, 5, 6))),
        labels[1],
    )
    sizes = []

    def apply_unet(latents, timesteps, embeds, class_labels):
        sizes.append(len(latents))
        return apply_fake_unet(latents, timesteps, embeds, class_labels)

    branches = (apply_unet, embeds, negative, labels[0], scale)
    output, predictions = guided_beside(*branches, others)(latents, jnp.int32(7))
    assert sizes == [5 if scale == 1.0 else 8]
    np.testing.assert_allclose(output, guided(*branches)(latents, jnp.int32(7)), rtol=1e-5)
    np.testing.assert_allclose(predictions, others.predict(apply_fake_unet), rtol=1e-5)
