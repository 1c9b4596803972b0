"""Exported checkpoints: torch's diffusers loads them and generates our images."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.checkpoints.lora_files import save_lora
from utilgen_jax.export import main
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import sample
from utilgen_jax.models.lora import Lora, init_lora, merge_lora, with_scale

PROMPT, STEPS, GUIDANCE = "the photo of the digit 7", 10, 5.0
LATENTS = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
WEIGHTED = {
    "sd15": ("unet", "vae", "text_encoder"),
    "unclip": ("unet", "vae", "text_encoder", "image_encoder", "image_normalizer"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Family -> read-only folder."""
    return functools.cache(lambda family: write_tiny_stable_diffusion(tmp_path_factory.mktemp(family), family=family))


def export(*arguments):
    return main(["export", *map(str, arguments)])


def refusal(capsys, *arguments):
    """Returns the error messages of an invalid call."""
    assert export(*arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]


def torch_image(folder):
    """Torch's image of `PROMPT` from `LATENTS`, float [1, H, W, 3] in [-1, 1]."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    images = pipeline(PROMPT, latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy()), **settings).images
    return images.permute(0, 2, 3, 1).numpy() * 2 - 1


def random_lora(params, seed):
    """A LoRA with an effect, alpha unlike its rank."""
    lora = init_lora(params, jax.random.key(seed), rank=3, alpha=2.0)
    key = jax.random.key(seed + 1)
    return Lora(jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), lora.factors), lora.scales)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "unclip", "sdxl"])
def test_torch_loads_the_folder_with_all_weights(checkpoint, tmp_path, family):
    out = tmp_path / "exported"
    assert export(f"--checkpoint={checkpoint(family)}", f"--out={out}") == 0
    original, exported = (DiffusionPipeline.from_pretrained(folder) for folder in (checkpoint(family), out))
    assert type(exported) is type(original)
    for name in WEIGHTED[family]:
        ours, theirs = getattr(exported, name), getattr(original, name)
        assert ours.config.__class__ is theirs.config.__class__
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    assert exported.scheduler.config == original.scheduler.config
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.mark.slow
def test_torch_generates_our_image_from_a_folder_with_a_merged_lora(checkpoint, tmp_path):
    sd = load_stable_diffusion(checkpoint("sd15"))
    loras = {name: random_lora(sd.params[name], seed) for seed, name in enumerate(("unet", "text_encoder"))}
    file = save_lora(tmp_path / "lora.safetensors", loras)
    arguments = (
        f"--checkpoint={checkpoint('sd15')}",
        f"--lora={file}",
        "--lora_scale=0.7",
        f"--out={tmp_path / 'out'}",
    )
    assert export(*arguments) == 0

    loras = {name: with_scale(lora, 0.7) for name, lora in loras.items()}
    condition = text_condition(sd, [PROMPT], loras=loras)
    ours = sample(sd, condition, LATENTS, SamplingConfig(steps=STEPS, guidance_scale=GUIDANCE), loras=loras)

    assert relative_error(ours, torch_image(tmp_path / "out")) < 1e-3
    assert relative_error(ours, torch_image(checkpoint("sd15"))) > 1e-2


def test_a_unet_that_a_training_script_left(checkpoint, tmp_path):
    trained = UNet2DConditionModel.from_pretrained(checkpoint("sd15") / "unet")
    with torch.no_grad():
        trained.conv_out.bias.fill_(0.3)
    trained.save_pretrained(tmp_path / "checkpoint-500" / "unet")  # as accelerate's hook of the scripts does
    flags = (f"--unet={tmp_path / 'checkpoint-500' / 'unet'}", f"--out={tmp_path / 'out'}")
    assert export(f"--checkpoint={checkpoint('sd15')}", *flags) == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    theirs = trained.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_an_autoencoder_of_another_class_is_opened_as_such(checkpoint, tmp_path):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    taesd = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    taesd.save_pretrained(tmp_path / "taesd")
    out = tmp_path / "out"
    assert export(f"--checkpoint={checkpoint('sd15')}", f"--vae={tmp_path / 'taesd'}", f"--out={out}") == 0
    opened = DiffusionPipeline.from_pretrained(out).vae
    assert type(opened) is AutoencoderTiny
    assert all(torch.equal(tensor, taesd.state_dict()[name]) for name, tensor in opened.state_dict().items())
    assert type(load_stable_diffusion(out).vae).__name__ == "AutoencoderTiny"


def test_dtype_variant_and_another_autoencoder(checkpoint, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(checkpoint("sd15"), half)
    unet = half / "unet" / "diffusion_pytorch_model.safetensors"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(unet).items()}
    save_file(zeros, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    vae = AutoencoderKL.from_pretrained(half / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(0.3)
    vae.save_pretrained(tmp_path / "vae")

    out = tmp_path / "out"
    flags = (f"--vae={tmp_path / 'vae'}", "--variant=fp16", "--dtype=bfloat16", f"--out={out}")
    assert export(f"--checkpoint={half}", *flags) == 0
    assert not load_file(out / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].any()
    stored = load_file(out / "vae" / "diffusion_pytorch_model.safetensors")
    assert stored["decoder.conv_out.bias"].tolist() == torch.full((3,), 0.3).bfloat16().tolist()
    text = load_file(out / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in (*text.values(), *stored.values())} == {torch.bfloat16}


@pytest.mark.slow
def test_an_old_lora_file_is_converted(checkpoint, tmp_path):
    sd = load_stable_diffusion(checkpoint("sd15"))
    lora = random_lora(sd.params["unet"], 0)
    today = load_file(save_lora(tmp_path / "today.safetensors", {"unet": lora}))
    names = {"lora_A": "lora.down", "lora_B": "lora.up"}
    old = {functools.reduce(lambda key, pair: key.replace(*pair), names.items(), key): t for key, t in today.items()}
    assert not old.keys() & today.keys()
    save_file(old, tmp_path / "old.safetensors")  # has no alpha: the rank is taken for it

    flags = (f"--lora={tmp_path / 'old.safetensors'}", "--lora_only", f"--out={tmp_path / 'out'}")
    assert export(f"--checkpoint={checkpoint('sd15')}", *flags) == 0
    [file] = (tmp_path / "out").iterdir()
    assert file.name == "pytorch_lora_weights.safetensors"
    written = load_file(file)
    assert written.keys() == today.keys() and all(torch.equal(written[key], today[key]) for key in today)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"))
    pipeline.load_lora_weights(file.parent)
    assert pipeline.get_active_adapters()


def test_several_loras_are_merged_each_with_its_scale(checkpoint, tmp_path):
    params = load_stable_diffusion(checkpoint("sd15")).params
    loras = [random_lora(params["unet"], seed) for seed in (0, 5)]
    files = [save_lora(tmp_path / f"{seed}.safetensors", {"unet": lora}) for seed, lora in enumerate(loras)]
    flags = (f"--lora={files[0]}", "--lora_scale=0.7", f"--lora={files[1]}", "--lora_scale=-0.4")
    assert export(f"--checkpoint={checkpoint('sd15')}", *flags, f"--out={tmp_path / 'out'}") == 0
    expected = params["unet"]
    for lora, scale in zip(loras, (0.7, -0.4), strict=True):
        expected = merge_lora(expected, with_scale(lora, scale))
    written = load_stable_diffusion(tmp_path / "out").params["unet"]
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), written, expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_dora_is_merged_as_peft_merges_it(checkpoint, tmp_path, capsys):
    unet = UNet2DConditionModel.from_pretrained(checkpoint("sd15") / "unet")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=["to_q", "conv1"], init_lora_weights=False)
    model = peft.get_peft_model(unet, config)
    model.save_pretrained(tmp_path / "dora")
    flags = (f"--checkpoint={checkpoint('sd15')}", f"--lora={tmp_path / 'dora'}", f"--out={tmp_path / 'out'}")
    [message] = refusal(capsys, *flags, "--lora_only")
    assert "DoRA, LoHa and LoKr are no plain LoRA" in message
    assert export(*flags) == 0
    written = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in model.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(written[name], tensor, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["controlnet", "prior"])
def test_a_component_that_is_not_supported_is_refused(checkpoint, tmp_path, capsys, name):
    folder = shutil.copytree(checkpoint("sd15"), tmp_path / "folder")
    index = json.loads((folder / "model_index.json").read_text()) | {name: ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    [message] = refusal(capsys, f"--checkpoint={folder}", f"--out={tmp_path / 'out'}")
    assert f"{name} (ControlNetModel): not supported" in message
    assert not (tmp_path / "out").exists()


def test_an_ip_adapters_image_encoder_is_left_out(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sd15"), tmp_path / "folder")
    shutil.copytree(checkpoint("unclip") / "image_encoder", folder / "image_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert export(f"--checkpoint={folder}", f"--out={tmp_path / 'out'}") == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.image_encoder is None and not (tmp_path / "out" / "image_encoder").exists()


def test_only_an_earlier_export_is_replaced(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (f"--checkpoint={checkpoint('sd15')}", f"--out={out}")
    out.mkdir()
    assert export(*arguments) == 0
    (out / "unet" / "stale").touch()
    assert export(*arguments, "--dtype=float16") == 0
    assert not (out / "unet" / "stale").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]

    index = json.loads((out / "model_index.json").read_text())
    del index["_exported_by"]
    (out / "model_index.json").write_text(json.dumps(index))
    capsys.readouterr()
    [message] = refusal(capsys, *arguments)
    assert message.startswith(f"{out}: holds something else than an earlier export")
    assert (out / "unet").is_dir()


def test_a_failed_export_leaves_the_target_unchanged(checkpoint, tmp_path, capsys):
    broken = shutil.copytree(checkpoint("sd15"), tmp_path / "broken")
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    lines = refusal(capsys, f"--checkpoint={broken}", f"--out={tmp_path / 'out'}")
    assert "not a complete safetensors file" in "".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_all_input_errors_are_reported_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    lines = refusal(capsys, "--dtyp=x", "--dtype=float61", "--lora_scale=2", f"--out={tmp_path / 'file' / 'sub'}")
    assert [line.split(":")[0] for line in lines] == [
        "--dtyp=x",
        "--checkpoint",
        "--dtype=float61",
        "--lora_scale",
        "--out",
    ]
    assert "nearest is --dtype" in lines[0] and "nearest is float16" in lines[2]
    lines = refusal(capsys, "--checkpoint=glyphs", f"--out={tmp_path}", "--lora=gone", "--lora_only", "--dtype=float16")
    assert lines == ["--lora: gone does not exist", "--dtype: has no effect with --lora_only"]


def test_help_lists_the_flags(capsys):
    assert export("--help") == 0
    text = capsys.readouterr().out
    assert "--lora_only" in text and "python -m utilgen_jax.export --checkpoint=glyphs" in text


@pytest.mark.slow
def test_the_embedded_checkpoint_is_exported(tmp_path):
    assert export("--checkpoint=glyphs", f"--out={tmp_path / 'glyphs'}", "--dtype=float32") == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "glyphs")
    sd = load_stable_diffusion(tmp_path / "glyphs")
    bias = sd.params["unet"]["conv_out"]["bias"]
    assert jnp.array_equal(bias, pipeline.unet.conv_out.bias.detach().numpy())
