"""Checkpoints in one file: torch's folder under latent-diffusion's names and back, by diffusers' own converter."""

import json
import re
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from utilgen_jax import checkpoints
from utilgen_jax.checkpoints.ldm_names import UNetLayout, open_clip_name, unet_name, vae_name
from utilgen_jax.errors import InputError
from utilgen_jax.export import main

COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
CLIP = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd21": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
BLOCKS = {  # as in Stable Diffusion, where the outermost up block has no upsampler, and one has it without attention
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def folder(request, tmp_path_factory):
    heads = {"attention_head_dim": (2, 4, 4)} if request.param == "sd21" else {}
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "sdxl":
        return write_tiny_stable_diffusion(path, family="sdxl", layers_per_block=2)
    return write_tiny_stable_diffusion(path, family=request.param, **BLOCKS, **heads)


def config_of(folder, component):
    return json.loads((folder / component / "config.json").read_text())


def tensors_of(folder, component):
    return load_file(folder / component / f"{COMPONENTS[component]}.safetensors")


def as_single_file(folder, family):
    """The folder's tensors under latent-diffusion's names."""
    unet = tensors_of(folder, "unet")
    layout = UNetLayout.of(unet)
    file = {f"model.diffusion_model.{unet_name(name, layout)}": tensor for name, tensor in unet.items()}
    for name, tensor in tensors_of(folder, "vae").items():
        is_attention = ".attentions." in name and tensor.ndim == 2  # a 1x1 convolution there
        file[f"first_stage_model.{vae_name(name, 2)}"] = tensor[:, :, None, None] if is_attention else tensor
    joined = {}
    if family in CLIP:
        file |= {f"{CLIP[family]}{name}": tensor for name, tensor in text_tensors(folder, "text_encoder").items()}
    last = "text_encoder_2" if family == "sdxl" else "text_encoder"
    for name, tensor in text_tensors(folder, last).items() if family in OPEN_CLIP else ():
        source, part = open_clip_name(name)
        if part is None:
            file[OPEN_CLIP[family] + source] = tensor.T if name == "text_projection.weight" else tensor
        else:
            joined.setdefault(OPEN_CLIP[family] + source, [None] * 3)[part] = tensor
    file |= {name: torch.cat(parts) for name, parts in joined.items()}
    return file | {"betas": torch.zeros(3), "model_ema.decay": torch.ones(1)}


def text_tensors(folder, component):
    """By transformers 4's names."""
    tensors = tensors_of(folder, component)
    whole = ("text_model.", "text_projection.")
    return {name if name.startswith(whole) else f"text_model.{name}": tensor for name, tensor in tensors.items()}


def family_of(folder):
    if (folder / "text_encoder_2").is_dir():
        return "sdxl"
    return "sd21" if config_of(folder, "unet")["use_linear_projection"] else "sd15"


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    tensors = as_single_file(folder, family_of(folder))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.reshape(theirs[name].shape), theirs[name]), name


def test_diffusers_own_converter_reads_these_names(folder, file):
    state = load_file(file)
    config = config_of(folder, "unet")
    same(single_file_utils.convert_ldm_unet_checkpoint(dict(state), config), tensors_of(folder, "unet"))
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(state), config_of(folder, "vae"))
    same(vae, tensors_of(folder, "vae"))
    family, pipeline = family_of(folder), DiffusionPipeline.from_pretrained(folder)
    if family in CLIP:
        same_text(single_file_utils.convert_ldm_clip_checkpoint(state), pipeline.text_encoder)
    if family in OPEN_CLIP:
        encoder = pipeline.text_encoder_2 if family == "sdxl" else pipeline.text_encoder
        converted = single_file_utils.convert_open_clip_checkpoint(encoder, state, prefix=OPEN_CLIP[family])
        same_text(converted, encoder)


def same_text(ours, encoder):
    """Of a text encoder, with or without a prefix."""
    same(
        *(
            {name.removeprefix("text_model."): one for name, one in each.items()}
            for each in (ours, encoder.state_dict())
        )
    )


def test_a_single_file_becomes_the_folder_again(folder, file, tmp_path):
    configs = shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    flags = [f"--checkpoint={file}", f"--configs={configs}", f"--out={tmp_path / 'out'}"]
    assert main(["export", *flags]) == 0
    for component in COMPONENTS.keys() & {path.name for path in folder.iterdir()}:
        ours, theirs = tensors_of(tmp_path / "out", component), tensors_of(folder, component)
        if component.startswith("text_encoder"):
            ours, theirs = (
                {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
                for tensors in (ours, theirs)
            )
        same(ours, theirs)
    DiffusionPipeline.from_pretrained(tmp_path / "out")


def test_the_configs_that_a_file_needs_are_named(folder, file, tmp_path, capsys):
    flags = [f"--checkpoint={file}", f"--out={tmp_path / 'out'}"]
    assert main(["export", *flags]) == 2
    message = capsys.readouterr().err
    if family_of(folder) == "sd21":
        assert "say --configs=sd21, or sd21-768 if it predicts v" in message
    else:
        assert "not on this machine" in message  # sd15 or sdxl, which are not downloaded in tests


def test_tensors_that_do_not_fit_are_named(folder, file, tmp_path, capsys):
    unknown = "first_stage_model.of_another_model"
    tensors = load_file(file) | {unknown: torch.zeros(1)}
    del tensors["first_stage_model.encoder.conv_in.weight"]
    broken = tmp_path / "broken.safetensors"
    save_file(tensors, broken)
    assert main(["export", f"--checkpoint={broken}", f"--configs={folder}", f"--out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert f"{broken}: the weights of vae do not fit" in message
    assert "missing encoder.conv_in.weight" in message and f"unexpected {unknown}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conditioner.embedders.0.model.x": torch.zeros(1)}, "is a refiner of Stable Diffusion XL"),
        ({"first_stage_model.x": torch.zeros(1)}, r"has no tensors model.diffusion_model.\*, cond_stage_model"),
        ({"lora_unet_x.alpha": torch.zeros(1)}, "so it is no whole checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, tensors, words):
    save_file(tensors, tmp_path / "x.safetensors")
    assert main(["export", f"--checkpoint={tmp_path / 'x.safetensors'}", f"--out={tmp_path / 'out'}"]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_other_commands_say_how_a_file_becomes_a_folder(file):
    with pytest.raises(InputError, match=rf"export --checkpoint={file} --out=FOLDER` makes one"):
        checkpoints.resolve_checkpoint(str(file))
