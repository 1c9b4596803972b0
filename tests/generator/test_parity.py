"""The whole chain from a prompt to an image against torch's diffusers pipelines, from the same folder and latents."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableUnCLIPImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img
from PIL import Image

from tests.torch_parity import relative_error
from utilgen_jax import checkpoints
from utilgen_jax.data.images import to_float
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import encode_images, encode_prompts, noise_image_embeds, text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import encode_to_latents, sample
from utilgen_jax.pretraining import glyphs

PROMPTS = ["the photo of the digit 7", "a bold digit"]
NEGATIVE = "blurred"
STEPS, GUIDANCE = 10, 5.0
TOLERANCE = 1e-3
LATENTS = np.random.default_rng(0).normal(size=(len(PROMPTS), 8, 8, 4)).astype(np.float32)


def torch_images(pipeline, **arguments):
    """Float [B, H, W, 3] in [-1, 1], as `sample` returns them, by DDIM from the latents."""
    # Not the checkpoint's PNDM; diffusers' DDIM would clip latents where the config does not say otherwise.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return torch_images_of(pipeline, latents=nchw(LATENTS), **arguments)


def torch_images_of(pipeline, **arguments):
    """The same, with the pipeline's own scheduler."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"} | arguments
    images = pipeline(negative_prompt=[NEGATIVE] * len(LATENTS), **settings).images
    return images.permute(0, 2, 3, 1).numpy() * 2 - 1


def nchw(array):
    return torch.tensor(np.asarray(array).transpose(0, 3, 1, 2))


def our_images(sd, condition, clean_latents=None, **settings):
    sampling = SamplingConfig(**({"steps": STEPS, "guidance_scale": GUIDANCE} | settings))
    images = sample(sd, condition, jnp.asarray(LATENTS), sampling, clean_latents=clean_latents)
    assert images.dtype == jnp.float32 and images.min() >= -1 and images.max() <= 1
    return np.asarray(images)


def assert_same_images(ours, theirs):
    """Equal, of images that differ from each other and do not only show where they were clipped."""
    assert relative_error(ours, theirs) < TOLERANCE
    assert (np.abs(theirs) < 0.999).mean() > 0.2
    assert np.abs(theirs[0] - theirs[1]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("family", "prediction"), [("sd15", "epsilon"), ("sd21", "v_prediction")])
def test_text_to_image(checkpoint, loaded, family, prediction):
    sd = loaded(family)
    assert sd.schedule.prediction_type == prediction
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint(family))
    theirs_ids = pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77).input_ids
    np.testing.assert_array_equal(checkpoints.tokenize(sd.tokenizer, PROMPTS), theirs_ids)
    condition = text_condition(sd, PROMPTS, NEGATIVE)
    assert condition.class_labels is None
    ours = our_images(sd, condition)
    assert_same_images(ours, torch_images(pipeline, prompt=PROMPTS))
    # The comparison would tell: with the prompts exchanged the images differ by more than it allows.
    exchanged = text_condition(sd, PROMPTS[::-1], NEGATIVE)
    assert relative_error(our_images(sd, exchanged), ours) > 3 * TOLERANCE


# name, family, torch's scheduler, what the checkpoint's config is changed by, number of steps, guidance scale
OTHER_SCHEDULERS = [
    ("checkpoint", "sd15", PNDMScheduler, {}, STEPS, GUIDANCE),
    ("dpmsolver++", "sd21", DPMSolverMultistepScheduler, {}, STEPS, GUIDANCE),
    # As in SD-Turbo.
    ("euler", "sd15", EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 1, 0.0),
    ("euler", "sd15", EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 4, 0.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family", "kind", "changes", "steps", "guidance"), OTHER_SCHEDULERS)
def test_text_to_image_with_other_schedulers(checkpoint, loaded, name, family, kind, changes, steps, guidance):
    sd = loaded(family)
    config = checkpoints.load_config(checkpoint(family) / "scheduler", "scheduler_config.json") | changes
    sd = sd.replace(architecture=dataclasses.replace(sd.architecture, schedule=load_schedule(config)))
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint(family))
    pipeline.scheduler = kind.from_config(config)
    settings = {"prompt": PROMPTS, "num_inference_steps": steps, "guidance_scale": guidance}
    theirs = torch_images_of(pipeline, latents=nchw(LATENTS), **settings)
    condition = text_condition(sd, PROMPTS, NEGATIVE)
    ours = our_images(sd, condition, steps=steps, guidance_scale=guidance, scheduler=name)
    assert_same_images(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("ddim", DDIMScheduler), ("dpmsolver++", DPMSolverMultistepScheduler)])
def test_image_to_image(checkpoint, loaded, name, kind, monkeypatch):
    sd = loaded("sd21")
    text_to_image = StableDiffusionPipeline.from_pretrained(checkpoint("sd21"))
    text_to_image.scheduler = kind.from_config(text_to_image.scheduler.config)
    pipeline = StableDiffusionImg2ImgPipeline(**text_to_image.components, requires_safety_checker=False)
    # The noise is given; of the autoencoder's posterior we take the mean.
    monkeypatch.setattr(pipeline_stable_diffusion_img2img, "randn_tensor", lambda *_, **__: nchw(LATENTS))
    mean = lambda posterior, **_: posterior.latent_dist.mode()
    monkeypatch.setattr(pipeline_stable_diffusion_img2img, "retrieve_latents", mean)
    images = to_float(np.stack([image_of(seed, 16) for seed in range(2)]))
    theirs = torch_images_of(pipeline, prompt=PROMPTS, image=nchw(images) / 2 + 0.5, strength=0.6)
    condition = text_condition(sd, PROMPTS, NEGATIVE)
    clean_latents = encode_to_latents(sd, jnp.asarray(images))
    start = {"clean_latents": clean_latents, "strength": 0.6}
    assert_same_images(our_images(sd, condition, scheduler=name, **start), theirs)


def image_of(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (11, 11), (50, 33), (16, 41)])
def test_image_embeddings(checkpoint, loaded, size):
    sd = loaded("unclip")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(checkpoint("unclip"))
    images = np.stack([np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed in range(3)])
    pixels = pipeline.feature_extractor(images=[Image.fromarray(p) for p in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = pipeline.image_encoder(pixels).image_embeds.numpy()
    ours = encode_images(sd, jnp.asarray(to_float(images)))
    # Pillow rounds resized images to whole grey levels.
    assert relative_error(ours, expected) < (1e-4 if min(size) == 16 else 2e-2)


def test_noised_image_embeddings(checkpoint, loaded):
    sd = loaded("unclip")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(checkpoint("unclip"))
    embeds, noise = np.random.default_rng(5).normal(size=(2, 3, 16)).astype(np.float32)
    for level in (0, 300, 999):
        with torch.no_grad():
            expected = pipeline.noise_image_embeddings(torch.tensor(embeds), level, torch.tensor(noise)).numpy()
        ours = noise_image_embeds(sd, jnp.asarray(embeds), jnp.full(3, level), noise)
        assert relative_error(ours, expected) < 1e-4


def compare_unclip(folder, sd, images):
    """unCLIP from text and images, at noise level 0, where only the noise that is drawn needs to be the same."""
    # Half-precision files are computed on in single precision by both.
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder).to(torch.float32)
    embeds = encode_images(sd, jnp.asarray(to_float(images)))
    noise = np.random.default_rng(2).normal(size=embeds.shape).astype(np.float32)
    labels = noise_image_embeds(sd, embeds, jnp.zeros(len(images), jnp.int32), noise)
    add = partial(pipeline.noise_image_embeddings, noise=torch.tensor(noise))
    pipeline.noise_image_embeddings = lambda image_embeds, noise_level, **_: add(image_embeds, noise_level)
    pixels = pipeline.feature_extractor(images=[Image.fromarray(p) for p in images], return_tensors="pt").pixel_values
    theirs = torch_images(pipeline, prompt=PROMPTS, image=pixels, noise_level=0)
    text = text_condition(sd, PROMPTS, NEGATIVE)
    ours = our_images(sd, text.replace(class_labels=labels))
    assert_same_images(ours, theirs)
    return text, ours


@pytest.mark.slow
def test_unclip_from_text_and_images(checkpoint, loaded):
    sd = loaded("unclip")
    images = np.stack([image_of(seed, 16) for seed in range(2)])
    text, ours = compare_unclip(checkpoint("unclip"), sd, images)
    from_text = our_images(sd, text)
    assert relative_error(from_text, ours) > 3 * TOLERANCE


@pytest.mark.slow
def test_unclip_from_text_alone_has_no_image_embedding_in_either_branch(checkpoint, loaded):
    sd = loaded("unclip")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(checkpoint("unclip"))
    pipeline.noise_image_embeddings = lambda image_embeds, **_: torch.zeros(len(image_embeds), 32)
    theirs = torch_images(pipeline, prompt=PROMPTS, image_embeds=torch.zeros(2, 16))
    ours = our_images(sd, text_condition(sd, PROMPTS, NEGATIVE))
    assert_same_images(ours, theirs)


@pytest.mark.slow
def test_torch_opens_the_embedded_checkpoint_and_generates_the_same_images():
    folder = checkpoints.resolve_checkpoint("glyphs")
    sd = load_stable_diffusion(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 8e6
    grey, _, _ = glyphs.corpus(2, seed=0, start=7)
    images = np.repeat(grey[..., None], 3, axis=-1)
    compare_unclip(folder, sd, images)


def test_equal_prompts_are_encoded_once_and_land_in_their_places(loaded):
    sd = loaded("sd15")
    embeds = encode_prompts(sd, ["b", "a", "b"])
    np.testing.assert_array_equal(embeds[0], embeds[2])
    np.testing.assert_allclose(embeds[1:2], encode_prompts(sd, ["a"]), atol=1e-5)
    assert relative_error(embeds[0], embeds[1]) > 0.01


def test_images_condition_unclip_checkpoints_only(loaded):
    sd = loaded("sd15")
    with pytest.raises(InputError, match="no image_encoder"):
        encode_images(sd, jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(InputError, match="no image_noising_scheduler"):
        noise_image_embeds(sd, jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 16)))
