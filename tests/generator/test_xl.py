"""Stable Diffusion XL against torch's diffusers pipelines, from the same folder and latents."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.generator.test_parity import LATENTS, NEGATIVE, PROMPTS, assert_same_images, nchw, our_images
from tests.torch_parity import relative_error
from utilgen_jax.generator.conditioning import encode_prompts, text_condition
from utilgen_jax.generator.text_states import ImageSizes

SIZE = (16, 16)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def torch_images(pipeline, **arguments):
    """Float [B, H, W, 3] in [-1, 1], by the pipeline's scheduler."""
    settings = {"prompt": PROMPTS, "latents": nchw(LATENTS), "num_inference_steps": 10, "guidance_scale": 5.0}
    images = pipeline(**settings | {"output_type": "pt", "height": 16, "width": 16} | arguments).images
    return images.permute(0, 2, 3, 1).numpy() * 2 - 1


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_text_states_are_those_of_both_encoders(loaded, pipeline, clip_skip):
    prompts = [*PROMPTS, ""]
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, clip_skip=clip_skip or None
        )
    ours = encode_prompts(loaded("sdxl"), prompts, clip_skip=clip_skip)
    assert relative_error(ours.states, states.numpy()) < 1e-4
    assert relative_error(ours.pooled, pooled.numpy()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_text_to_image(loaded, pipeline, negative):
    sd = loaded("sdxl")
    sizes = ImageSizes((48, 64), (3, 5), SIZE)
    told = {"original_size": sizes.original, "crops_coords_top_left": sizes.crop, "target_size": sizes.target}
    theirs = torch_images(pipeline, negative_prompt=[negative] * 2 if negative else None, **told)
    ours = our_images(sd, text_condition(sd, PROMPTS, negative, sizes=sizes), scheduler="checkpoint")
    assert_same_images(ours, theirs)
