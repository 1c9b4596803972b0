"""Stable Diffusion XL against torch's diffusers pipelines, from the same folder and latents."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img

from tests.generator.test_parity import (
    LATENTS,
    NEGATIVE,
    PROMPTS,
    assert_same_images,
    image_of,
    nchw,
    our_images,
)
from tests.torch_parity import relative_error
from utilgen_jax.data.images import to_float
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import encode_negative_prompt, encode_prompts, text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import read_architecture
from utilgen_jax.generator.sampling import encode_to_latents, sample, step_keys
from utilgen_jax.generator.text_states import ImageSizes
from utilgen_jax.generator.tokens import add_learned_embeds
from utilgen_jax.generator.weighted_prompts import encode_weighted_prompts

SIZES = ImageSizes.of((16, 16))


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)


def torch_images(pipeline, **arguments):
    """Float [B, H, W, 3] in [-1, 1], by the pipeline's scheduler."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"prompt": PROMPTS, "num_inference_steps": 10, "guidance_scale": 5.0, "output_type": "pt"}
    return pipeline(**settings | arguments).images.permute(0, 2, 3, 1).numpy() * 2 - 1


def torch_states(pipeline, prompts, **arguments):
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, **arguments)
    return states.numpy(), pooled.numpy()


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_text_states_are_those_of_both_encoders(loaded, pipeline, clip_skip):
    prompts = [*PROMPTS, ""]
    states, pooled = torch_states(pipeline, prompts, clip_skip=clip_skip or None)
    ours = encode_prompts(loaded("sdxl"), prompts, clip_skip=clip_skip)
    assert relative_error(ours.states, states) < 1e-4
    assert relative_error(ours.pooled, pooled) < 1e-4


def test_sizes_are_asked_for(loaded):
    with pytest.raises(InputError, match="is told the sizes of images"):
        text_condition(loaded("sdxl"), PROMPTS)


def test_an_empty_negative_prompt_is_no_text_unless_the_checkpoint_takes_it_for_one(loaded):
    sd = loaded("sdxl")
    assert not encode_negative_prompt(sd, "").states.any() and not encode_negative_prompt(sd, "").pooled.any()
    with_text = sd.replace(architecture=dataclasses.replace(sd.architecture, zeros_for_empty_prompt=False))
    np.testing.assert_array_equal(encode_negative_prompt(with_text, "").pooled, encode_prompts(sd, [""]).pooled)


@pytest.mark.slow
@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_text_to_image(loaded, pipeline, negative):
    sizes = ImageSizes((48, 64), (3, 5), (16, 20))
    told = {"original_size": sizes.original, "crops_coords_top_left": sizes.crop, "target_size": sizes.target}
    negatives = [negative] * 2 if negative else None
    theirs = torch_images(pipeline, latents=nchw(LATENTS), negative_prompt=negatives, height=16, width=16, **told)
    condition = text_condition(loaded("sdxl"), PROMPTS, negative, sizes=sizes)
    ours = our_images(loaded("sdxl"), condition, scheduler="checkpoint")
    assert_same_images(ours, theirs)
    # The comparison would tell.
    untold = our_images(
        loaded("sdxl"), text_condition(loaded("sdxl"), PROMPTS, negative, sizes=SIZES), scheduler="checkpoint"
    )
    assert relative_error(untold, ours) > 3e-3


@pytest.mark.slow
def test_turbo_takes_one_step_without_guidance(checkpoint, loaded):
    sd = loaded("sdxl")
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    turbo = load_schedule(dict(pipeline.scheduler.config))
    sd = sd.replace(architecture=dataclasses.replace(sd.architecture, schedule=turbo))
    few = {"num_inference_steps": 1, "guidance_scale": 0.0}
    theirs = torch_images(pipeline, latents=nchw(LATENTS), height=16, width=16, **few)
    sampling = SamplingConfig(scheduler="checkpoint", steps=1, guidance_scale=0.0)
    condition, keys = text_condition(sd, PROMPTS, sizes=SIZES), step_keys(np.arange(2))  # of noise that is zero here
    assert_same_images(np.asarray(sample(sd, condition, jnp.asarray(LATENTS), sampling, keys=keys)), theirs)


@pytest.mark.slow
def test_image_to_image(loaded, pipeline, monkeypatch):
    sd = loaded("sdxl")
    pipeline = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    # The noise is given; of the autoencoder's posterior we take the mean.
    monkeypatch.setattr(img2img, "randn_tensor", lambda *_, **__: nchw(LATENTS))
    monkeypatch.setattr(img2img, "retrieve_latents", lambda posterior, **_: posterior.latent_dist.mode())
    images = to_float(np.stack([image_of(seed, 16) for seed in range(2)]))
    theirs = torch_images(pipeline, image=nchw(images) / 2 + 0.5, strength=0.6, negative_prompt=[NEGATIVE] * 2)
    condition = text_condition(sd, PROMPTS, NEGATIVE, sizes=SIZES)
    start = {"clean_latents": encode_to_latents(sd, jnp.asarray(images)), "strength": 0.6}
    assert_same_images(our_images(sd, condition, scheduler="checkpoint", **start), theirs)


def test_a_learned_token_has_an_embedding_for_each_text_encoder(checkpoint, loaded, tmp_path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    embeds = 2 * np.random.default_rng(0).standard_normal((2, 32 + 48)).astype(np.float32)
    both = (pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2)
    for part, (encoder, tokenizer) in zip(np.split(embeds, [32], axis=1), both, strict=True):
        pipeline.load_textual_inversion(torch.tensor(part), token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
    prompts = ["the photo of <cat>", "the <cat>"]
    states, pooled = torch_states(pipeline, prompts)
    ours = encode_prompts(add_learned_embeds(loaded("sdxl"), ("<cat>", embeds)), prompts)
    assert relative_error(ours.states, states) < 1e-4
    assert relative_error(ours.pooled, pooled) < 1e-4
    with pytest.raises(InputError, match="text encoder is 80 wide"):
        add_learned_embeds(loaded("sdxl"), ("<dog>", embeds[:, :32]))


def test_a_weight_moves_a_words_state_away_from_the_last_one(loaded, pipeline):
    """The rule of diffusers' community pipeline `lpw_stable_diffusion_xl`."""
    sd, prompts = loaded("sdxl"), ["the photo", "the digit"]
    plain, weighted = (
        encode_weighted_prompts(sd, prompts),
        encode_weighted_prompts(sd, ["the (photo:1.5)", "the digit"]),
    )
    expected, pooled = torch_states(pipeline, prompts)
    assert relative_error(plain.states, expected) < 1e-4 and relative_error(plain.pooled, pooled) < 1e-4
    number = len(sd.tokenizer("photo", add_special_tokens=False).input_ids)
    places = slice(2, 2 + number)  # after the start and 'the'
    last = expected[0, -1:]
    expected[0, places] = last + 1.5 * (expected[0, places] - last)
    assert relative_error(weighted.states, expected) < 1e-4
    np.testing.assert_array_equal(weighted.pooled, plain.pooled)


def test_the_autoencoder_is_spared_float16(checkpoint):
    folder, half = checkpoint("sdxl"), jnp.float16
    assert read_architecture(folder, half).vae.dtype == jnp.float32
    assert read_architecture(folder, half, vae_dtype=half).vae.dtype == half
    assert read_architecture(folder, jnp.bfloat16).vae.dtype == jnp.bfloat16
    assert read_architecture(checkpoint("sd15"), half).vae.dtype == half
