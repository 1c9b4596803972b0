"""The command that generates: torch's images from the same folder, and one clear message for each mistake."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.weighted_prompts import encode_weighted_prompts
from utilgen_jax.sample.__main__ import main

PROMPT, NEGATIVE = "the photo of the digit 7", "blurred"
STEPS, GUIDANCE = 10, 5.0
TOLERANCE = 1e-3
LATENTS = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Family ('sd15', 'sd21', 'unclip') -> folder, not to be changed."""
    return functools.cache(lambda family: write_tiny_stable_diffusion(tmp_path_factory.mktemp(family), family=family))


@pytest.fixture
def latents(tmp_path):
    """The file of `LATENTS`."""
    np.save(tmp_path / "latents.npy", LATENTS)
    return tmp_path / "latents.npy"


def generate_images(out: Path, *arguments: str) -> np.ndarray:
    """Runs the command; returns its images.npy."""
    assert main(["sample", f"--out={out}", *arguments]) == 0
    images = np.load(out / "images.npy")
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    return images


def settings(checkpoint: Path, latents: Path, prompt: str = PROMPT) -> list[str]:
    return [
        f"--checkpoint={checkpoint}",
        f"--prompt={prompt}",
        f"--negative_prompt={NEGATIVE}",
        f"--latents={latents}",
        f"--steps={STEPS}",
        f"--guidance_scale={GUIDANCE}",
    ]


def to_torch(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array.transpose(0, 3, 1, 2))


def torch_images(pipeline, prompt: str = PROMPT, **arguments) -> np.ndarray:
    """Two images of torch's pipeline, float [2, H, W, 3] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=[prompt] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
        **arguments,
    ).images


def assert_same_images(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal, of images that differ from each other and do not only show where they were clipped."""
    assert relative_error(2 * ours - 1, 2 * theirs - 1) < TOLERANCE
    assert ((theirs > 0.001) & (theirs < 0.999)).mean() > 0.2
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05


def write_image(file: Path, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """A smooth image, so that little hangs on how a filter rounds."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = np.stack([np.sin(5 * x + phase) * np.cos(3 * y + phase) for phase in range(3)], axis=-1)
    image = Image.fromarray(np.uint8(127.5 + 127 * channels)).convert(mode)
    image.save(file)
    return image


@pytest.mark.slow
def test_the_checkpoints_own_scheduler(checkpoint, latents, tmp_path):
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents))
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert_same_images(ours, torch_images(pipeline, latents=to_torch(LATENTS)))
    record = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert record["settings"]["scheduler"] == "pndm" and record["settings"]["num"] == 2
    for index, row in enumerate(record["images"]):
        assert row == {"file": f"00{index}.png", "prompt": PROMPT, "seed": index}
        with Image.open(tmp_path / "out" / row["file"]) as image:
            np.testing.assert_allclose(np.asarray(image), 255 * ours[index], atol=0.51)
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 2 * 128


@pytest.mark.slow
def test_v_prediction_with_another_scheduler_and_another_autoencoder(checkpoint, latents, tmp_path):
    vae = write_tiny_stable_diffusion(tmp_path / "other", seed=1) / "vae"
    others = ["--scheduler=dpmsolver++", f"--vae={vae}"]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd21"), latents), *others)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd21"), vae=AutoencoderKL.from_pretrained(vae))
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert_same_images(ours, torch_images(pipeline, latents=to_torch(LATENTS)))


@pytest.mark.slow
def test_from_a_image(checkpoint, tmp_path, monkeypatch):
    noise = np.random.default_rng(1).normal(size=(2, 11, 18, 4)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    image = write_image(tmp_path / "photo.png", 23, 37)
    ours = generate_images(
        tmp_path / "out",
        *settings(checkpoint("sd21"), tmp_path / "noise.npy"),
        f"--init_image={tmp_path / 'photo.png'}",
        "--strength=0.6",
    )
    assert ours.shape == (2, 22, 36, 3)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint("sd21"))
    monkeypatch.setattr(img2img, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())
    monkeypatch.setattr(img2img, "randn_tensor", lambda *_, **__: to_torch(noise))
    assert_same_images(ours, torch_images(pipeline, image=[image] * 2, strength=0.6))


@pytest.mark.slow
def test_taesd(checkpoint, latents, tmp_path):
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1))
    vae.save_pretrained(tmp_path / "taesd")
    image = write_image(tmp_path / "photo.png", 16, 16)
    flags = [f"--vae={tmp_path / 'taesd'}", f"--init_image={tmp_path / 'photo.png'}", "--strength=0.6"]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents), *flags)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint("sd15"), vae=vae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(img2img, "randn_tensor", lambda *_, **__: to_torch(LATENTS))
        assert_same_images(ours, torch_images(pipeline, image=[image] * 2, strength=0.6))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [None, 0.6])
def test_inpainting(latents, tmp_path, monkeypatch, strength):
    folder = write_tiny_stable_diffusion(tmp_path / "checkpoint", in_channels=9)
    image, mask = write_image(tmp_path / "photo.png", 16, 16), Image.new("L", (32, 32))
    mask.paste(255, (8, 4, 27, 20))
    mask.save(tmp_path / "mask.png")
    flags = [f"--init_image={tmp_path / 'photo.png'}", f"--mask_image={tmp_path / 'mask.png'}"]
    flags += [f"--strength={strength}"] if strength else []
    ours = generate_images(tmp_path / "out", *settings(folder, latents), *flags)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder)
    monkeypatch.setattr(inpaint, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())
    monkeypatch.setattr(inpaint, "randn_tensor", lambda *_, **__: to_torch(LATENTS))
    arguments = {"mask_image": [mask] * 2, "strength": strength or 1.0, "height": 16, "width": 16}
    assert_same_images(ours, torch_images(pipeline, image=[image] * 2, **arguments))


@pytest.mark.slow
def test_variations_of_a_image(checkpoint, latents, tmp_path):
    image = write_image(tmp_path / "photo.png", 21, 37)
    level = ["--noise_level=200", "--seed=5"]
    ours = generate_images(
        tmp_path / "out",
        *settings(checkpoint("unclip"), latents),
        *level,
        f"--image_prompt={tmp_path / 'photo.png'}",
    )
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(checkpoint("unclip"))
    keys = [jax.random.fold_in(jax.random.key(seed), 2) for seed in (5, 6)]
    noise = torch.tensor(np.stack([jax.random.normal(key, (16,)) for key in keys]))
    add = functools.partial(pipeline.noise_image_embeddings, noise=noise)
    pipeline.noise_image_embeddings = lambda image_embeds, noise_level, **_: add(image_embeds, noise_level)
    theirs = torch_images(pipeline, latents=to_torch(LATENTS), image=[image] * 2, noise_level=200)
    assert_same_images(ours, theirs)


@pytest.mark.slow
def test_lora(checkpoint, latents, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipeline.unet))
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    pipeline.load_lora_weights(tmp_path)
    theirs = torch_images(pipeline, latents=to_torch(LATENTS), cross_attention_kwargs={"scale": 0.5})
    file = tmp_path / "pytorch_lora_weights.safetensors"
    ours = generate_images(
        tmp_path / "out", *settings(checkpoint("sd15"), latents), f"--lora={file}", "--lora_scale=0.5"
    )
    assert_same_images(ours, theirs)
    pipeline.unload_lora_weights()
    assert relative_error(torch_images(pipeline, latents=to_torch(LATENTS)), theirs) > 3 * TOLERANCE


def random_lora(folder: Path, checkpoint: Path, seed: int, targets: list[str]) -> Path:
    """The file of a LoRA with an effect, written by torch."""
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    torch.manual_seed(seed)
    pipeline.unet.add_adapter(LoraConfig(r=2 + seed, lora_alpha=2, target_modules=targets))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    StableDiffusionPipeline.save_lora_weights(folder, get_peft_model_state_dict(pipeline.unet))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # as there are to be two
def test_several_loras_each_with_its_scale(checkpoint, latents, tmp_path):
    targets = (["to_q", "to_k"], ["to_k", "to_v", "conv1"])
    files = [random_lora(tmp_path / f"{seed}", checkpoint("sd15"), seed, targets[seed]) for seed in (0, 1)]
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    for name, file in zip("ab", files, strict=True):
        pipeline.load_lora_weights(file.parent, adapter_name=name)
    pipeline.set_adapters(["a", "b"], [0.5, 1.2])
    theirs = torch_images(pipeline, latents=to_torch(LATENTS))
    flags = [f"--lora={files[0]}", "--lora_scale=0.5", f"--lora={files[1]}", "--lora_scale=1.2"]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents), *flags)
    assert_same_images(ours, theirs)
    pipeline.set_adapters(["b"], [1.2])
    assert relative_error(torch_images(pipeline, latents=to_torch(LATENTS)), theirs) > 3 * TOLERANCE


@pytest.mark.slow
def test_several_learned_tokens(checkpoint, latents, tmp_path):
    torch.manual_seed(0)
    files = []
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    for token, rows in (("<seven>", 2), ("<bold>", 1)):
        files.append(tmp_path / f"{token[1:-1]}.safetensors")
        save_file({token: torch.randn(rows, 32)}, files[-1])
        pipeline.load_textual_inversion(str(tmp_path), weight_name=files[-1].name)
    prompt = "a <bold> photo of <seven>"
    theirs = torch_images(pipeline, prompt, latents=to_torch(LATENTS))
    flags = [f"--embeds={file}" for file in files]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents, prompt), *flags)
    assert_same_images(ours, theirs)


@pytest.mark.slow
def test_a_learned_token(checkpoint, latents, tmp_path):
    torch.manual_seed(0)
    save_file({"<seven>": torch.randn(2, 32)}, tmp_path / "learned_embeds.safetensors")
    prompt = "a photo of <seven>"
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    pipeline.load_textual_inversion(str(tmp_path), weight_name="learned_embeds.safetensors")
    theirs = torch_images(pipeline, prompt, latents=to_torch(LATENTS))
    file = tmp_path / "learned_embeds.safetensors"
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents, prompt), f"--embeds={file}")
    assert_same_images(ours, theirs)


@pytest.mark.slow
def test_a_image_follows_from_its_prompt_and_seed(checkpoint, tmp_path):
    shared = [f"--checkpoint={checkpoint('sd15')}", "--steps=2", "--scheduler=ddim", "--eta=0.5", "--width=24"]
    together = generate_images(
        tmp_path / "a", *shared, "--prompt=a", "--prompt=b", "--num=3", "--seed=7", "--batch_size=4"
    )
    assert together.shape == (6, 16, 24, 3)
    record = json.loads((tmp_path / "a" / "sample.json").read_text())
    assert [(row["prompt"], row["seed"]) for row in record["images"]] == [(p, s) for p in "ab" for s in (7, 8, 9)]
    alone = generate_images(tmp_path / "b", *shared, "--prompt=b", "--num=1", "--seed=8")
    np.testing.assert_allclose(alone[0], together[4], atol=1e-5)
    assert np.abs(together[4] - together[3]).max() > 0.05  # another seed


@pytest.mark.slow
def test_layers_of_the_text_encoder_are_skipped_and_guidance_is_rescaled(checkpoint, latents, tmp_path):
    flags = ["--clip_skip=1", "--guidance_rescale=0.7"]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd21"), latents), *flags)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd21"))
    # As transformers 4 called it; diffusers still looks for its final norm there.
    vars(pipeline.text_encoder).setdefault("text_model", pipeline.text_encoder)
    theirs = torch_images(pipeline, latents=to_torch(LATENTS), clip_skip=1, guidance_rescale=0.7)
    assert_same_images(ours, theirs)
    for one in ({"clip_skip": 1}, {"guidance_rescale": 0.7}):
        assert relative_error(torch_images(pipeline, latents=to_torch(LATENTS), **one), theirs) > 3 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("unet", [{"time_cond_proj_dim": 8}, {"mid_block_type": None}])
def test_a_latent_consistency_model_and_a_unet_without_middle(latents, tmp_path, unet):
    folder = write_tiny_stable_diffusion(tmp_path / "checkpoint", **unet)
    ours = generate_images(tmp_path / "out", *settings(folder, latents))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert_same_images(ours, torch_images(pipeline, latents=to_torch(LATENTS)))


@pytest.mark.slow
def test_seeds_of_64_bits(checkpoint, tmp_path):
    flags = [f"--checkpoint={checkpoint('sd15')}", "--prompt=a", "--steps=1", "--scheduler=ddim"]
    last = 2**64 - 1
    images = generate_images(tmp_path / "a", *flags, "--num=2", f"--seed={last - 1}")
    record = json.loads((tmp_path / "a" / "sample.json").read_text())
    assert [row["seed"] for row in record["images"]] == [last - 1, last]
    low = generate_images(tmp_path / "b", *flags, "--num=1", f"--seed={2**32 - 1}")
    assert np.abs(images[1] - low[0]).max() > 0.05
    again = generate_images(tmp_path / "c", *flags, "--num=1", f"--seed={last}")
    np.testing.assert_allclose(again[0], images[1], atol=1e-5)


@pytest.mark.slow
def test_weighted_prompts_of_any_length(checkpoint, latents, tmp_path):
    """From the states that torch's text encoder gives of each part."""
    prompt = "(the photo:1.3) of " + "the digit " * 60 + "[7]"
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    sd = load_stable_diffusion(checkpoint("sd15"))
    embeds = encode_weighted_prompts(sd, [prompt, NEGATIVE])
    assert embeds.shape[1] == 2 * 77
    theirs = pipeline(
        prompt_embeds=torch.tensor(np.array(embeds[:1])).repeat(2, 1, 1),
        negative_prompt_embeds=torch.tensor(np.array(embeds[1:])).repeat(2, 1, 1),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
        latents=to_torch(LATENTS),
    ).images
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents, prompt), "--weighted_prompts")
    assert_same_images(ours, theirs)


@pytest.mark.slow
def test_lower_precision_is_near(checkpoint, latents, tmp_path):
    dtypes = ["--dtype=bfloat16", "--weights_dtype=float16", "--vae_dtype=float32"]
    ours = generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents), *dtypes)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    assert 1e-4 < np.abs(ours - torch_images(pipeline, latents=to_torch(LATENTS))).max() < 0.1


def test_a_prompt_that_is_too_long_is_told(checkpoint, latents, tmp_path, capsys, monkeypatch):
    black = np.full((2, 16, 16, 3), -1, np.float32)
    monkeypatch.setattr("utilgen_jax.sample.write.generate_images", lambda *_, **__: iter([black]))
    generate_images(tmp_path / "out", *settings(checkpoint("sd15"), latents, "digit " * 75 + "bold 7"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert line == "warning: the prompt is too long for the text encoder, which does not see: 'bold 7'"


def errors_of(capsys, *arguments: str) -> list[str]:
    """Runs the command on wrong arguments; returns its messages."""
    assert main(["sample", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.slow
def test_stable_diffusion_xl_is_told_sizes(checkpoint, latents, tmp_path):
    told = ["--original_size=48,64", "--crop=3,5", "--target_size=16,20"]
    ours = generate_images(tmp_path / "ours", *settings(checkpoint("sdxl"), latents), *told)
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    sizes = {"original_size": (48, 64), "crops_coords_top_left": (3, 5), "target_size": (16, 20)}
    theirs = torch_images(pipeline, latents=to_torch(LATENTS), **sizes)
    assert relative_error(ours, theirs) < TOLERANCE
    assert relative_error(generate_images(tmp_path / "own", *settings(checkpoint("sdxl"), latents)), ours) > TOLERANCE


@pytest.mark.slow
def test_few_steps_without_guidance_as_sdxl_lightning_takes_them(checkpoint, latents, tmp_path):
    few = ["--steps=4", "--guidance_scale=0", "--scheduler=euler", "--timestep_spacing=trailing"]
    ours = generate_images(tmp_path / "ours", *settings(checkpoint("sdxl"), latents), *few)
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    few = {"num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "np"}
    theirs = pipeline(prompt=[PROMPT] * 2, latents=to_torch(LATENTS), **few).images
    assert relative_error(ours, theirs) < TOLERANCE


def test_all_mistakes_are_told_at_once_before_the_checkpoint_is_opened(capsys, tmp_path):
    errors = errors_of(
        capsys,
        "--checkpont=glyphs",
        "--scheduler=dimm",
        "--num=0",
        "--steps=many",
        "--dtype=bfloat",
        "--strength=0.5",
        f"--init_image={tmp_path / 'none.png'}",
        "--lora=none.safetensors",
        f"--out={__file__}/below",
        "--seed",
    )
    expected = [
        "--checkpont=glyphs: no such flag; the nearest is --checkpoint",
        "flag --num=0",
        "flag --steps=many",
        "--seed: a value is missing; write --seed=VALUE",
        "--checkpoint: say which, such as --checkpoint=glyphs",
        '--prompt: say which, such as --prompt="a photo of the digit seven"',
        "--scheduler=dimm: is not one of ddim, ddpm, pndm, dpmsolver++, dpmsolver++_karras, ",
        "--dtype=bfloat: is not one of float32, bfloat16, float16; the nearest is bfloat16",
        "--lora: none.safetensors does not exist",
        f"--out: {__file__}/below is, or lies under, a file; give a folder",
        f"--init_image: there is no file {tmp_path / 'none.png'}",
    ]
    assert len(errors) == len(expected)
    for error, start in zip(errors, expected, strict=True):
        assert error.startswith(start)


MISTAKES = {
    "size": (
        ["--height=17", "--width=1"],
        [
            "--height=17: this checkpoint makes multiples of 2; the nearest is 16",
            "--width=1: this checkpoint makes multiples of 2; the nearest is 2",
        ],
    ),
    "no unCLIP": (["--image_prompt=photo.png"], ["has no image_encoder; an unCLIP checkpoint has"]),
    "noise without image": (["--noise_level=3"], ["--noise_level: is of use with --image_prompt only"]),
    "latents' shape": (["--latents=noise.npy"], ["holds [1, 8, 8, 3], but num, height and width make it [1, 8, 8, 4]"]),
    "latents' number": (["--latents=noise.npy", "--num=3"], ["make it [3, 8, 8, 4]"]),
    "latents' dtype": (["--latents=double.npy"], ["one float32 array [N, h, w, channels], this holds float64 [1, 8]"]),
    "latents of objects": (["--latents=objects.npy"], ["objects.npy: cannot be read as an array that np.save wrote"]),
    "not finite": (["--latents=nan.npy"], ["nan.npy: holds NaN or infinity"]),
    "broken image": (["--init_image=broken.png"], ["--init_image: broken.png: the image cannot be decoded"]),
    "steps": (["--steps=1001", "--scheduler=ddim"], ["sampling steps must be between 1 and"]),
    "strength": (["--init_image=photo.png", "--strength=0.01"], ["--scheduler=pndm: strength=0.01 of 30"]),
    "no strength": (["--init_image=photo.png", "--strength=0"], ["--strength=0: would leave --init_image as it is"]),
    "mask": (["--init_image=photo.png", "--mask_image=photo.png"], ["is not for inpainting; leave the mask out"]),
    "mask alone": (["--mask_image=photo.png"], ["--mask_image: is of use with --init_image only"]),
    "eta": (["--eta=0.5"], ["--scheduler=pndm: eta=0.5 is only for the scheduler 'ddim'"]),
    "seed": ([f"--seed={2**64 - 1}", "--num=2"], [f"the last image's seed would pass {2**64 - 1}"]),
    "clip_skip": (["--clip_skip=3"], ["--clip_skip=3: the text encoder has 2 layers"]),
    "sizes": (
        ["--original_size=64", "--crop=0,-3", "--target_size=a,b"],
        [
            "--original_size=64: two whole numbers from 1 up",
            "--crop=0,-3: two whole numbers from 0 up",
            "--target_size=a,b: two",
        ],
    ),
    "sizes without XL": (["--original_size=64,64"], ["is told no sizes, Stable Diffusion XL is; leave it out"]),
    "checkpoint": (["--checkpoint=."], ["has no model_index.json"]),
    "variant": (["--variant=fp16"], ["has no weights of variant 'fp16'"]),
    "hub": (["--checkpoint=owner/name", "--revision=main"], ["owner/name: not on this machine, and the Hugging Face"]),
    "vae": (["--vae=photo.png"], ["photo.png: a checkpoint is a folder in diffusers' format"]),
    "unet": (["--unet=."], ["has no config.json, so it is no component in diffusers' format"]),
    "training": (["--checkpoint=training"], ["training: has a UNet but no model_index.json", "--unet=training/unet"]),
    "lora": (["--lora=noise.npy"], ["noise.npy"]),
    "scales": (
        ["--lora=noise.npy", "--lora=nan.npy", "--lora_scale=0.5"],
        ["--lora_scale: 1 for 2 --lora; give one after each --lora, or none for 1"],
    ),
    "scale alone": (["--lora_scale=0.5"], ["--lora_scale: is of use with --lora only"]),
    "embeds": (["--embeds=noise.npy", "--embeds=none.safetensors"], ["--embeds: none.safetensors does not exist"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(checkpoint, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utilgen_jax.sample.write.load_stable_diffusion", None)  # no weights may be loaded
    write_image(Path("photo.png"), 20, 20)
    Path("broken.png").write_bytes(Path("photo.png").read_bytes()[:100])
    arrays = {
        "noise": np.zeros((1, 8, 8, 3), np.float32),
        "double": np.zeros((1, 8)),
        "objects": np.array([{}]),
        "nan": np.full((1, 8, 8, 4), np.nan, np.float32),
    }
    for file, array in arrays.items():
        np.save(f"{file}.npy", array)
    arguments, messages = MISTAKES[name]
    folder = checkpoint("sd15")
    shutil.copytree(folder / "unet", "training/unet")
    capsys.readouterr()  # what torch tells when it writes it
    errors = errors_of(capsys, f"--checkpoint={folder}", "--prompt=a", "--out=out", *arguments)
    for message in messages:
        assert any(message in error for error in errors)
    assert not Path("out").exists()


def test_images_are_read_as_a_person_sees_them(tmp_path):
    from utilgen_jax.data.images import open_image

    image = write_image(tmp_path / "plain.png", 20, 30)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # turn by 90 degrees to see it upright
    image.save(tmp_path / "turned.png", exif=rotated)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(open_image(tmp_path / "turned.png", "turned"), expected)
    grey = write_image(tmp_path / "grey.png", 4, 4, "L")
    np.testing.assert_array_equal(open_image(tmp_path / "grey.png", "grey"), np.stack([np.asarray(grey)] * 3, -1))
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(open_image(tmp_path / "clear.png", "clear")) == 255).all()


def test_help_and_mistakes_touch_no_device():
    code = (
        "import sys; from utilgen_jax.sample.__main__ import main; "
        "codes = main(['s', '--help']), main(['s', '--prompt=a']); "
        "from jax._src import xla_bridge; sys.exit(0 if codes == (0, 2) and not xla_bridge._backends else 1)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--steps: denoising steps (default 30)" in result.stdout and "Config fields" not in result.stdout
