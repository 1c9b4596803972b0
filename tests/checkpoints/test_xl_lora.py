"""LoRA files for Stable Diffusion XL, written and read by diffusers, with a part for each of three models."""

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline

from tests.checkpoints.test_lora_files import assert_same_factors, our_factors
from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.checkpoints.ldm_names import UNetLayout, unet_name
from utilgen_jax.checkpoints.lora_files import load_adapter, save_lora
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import sample
from utilgen_jax.generator.text_states import ImageSizes

MODELS = ("unet", "text_encoder", "text_encoder_2")
UNET_LAYERS = ["to_q", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv_shortcut"]
TEXT_LAYERS = ["q_proj", "out_proj", "fc1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sdxl"), family="sdxl")


@pytest.fixture(scope="module")
def sd(folder):
    return load_stable_diffusion(folder)


def torch_pipeline(folder, unet_layers=(), rank=3):
    """The checkpoint in torch, with peft's random LoRAs of these layers of the UNet and of both text encoders."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    for name in MODELS if unet_layers else ():
        layers = list(unet_layers) if name == "unet" else TEXT_LAYERS
        getattr(pipeline, name).add_adapter(peft.LoraConfig(r=rank, lora_alpha=5, target_modules=layers), "default")
        with torch.no_grad():
            for parameter_name, parameter in getattr(pipeline, name).named_parameters():
                if ".lora_" in parameter_name:
                    parameter.normal_(0, 0.1)
    return pipeline


def factors_of(pipeline):
    """{component and layer: (down, up, scale)}, torch's layout, transformers 4's names."""
    found = {}
    for component in MODELS:
        for name, module in getattr(pipeline, component).named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                (adapter,) = module.lora_A
                down, up = (factors[adapter].weight.detach().numpy() for factors in (module.lora_A, module.lora_B))
                name = name if component == "unet" else f"text_model.{name.removeprefix('text_model.')}"
                found[f"{component}.{name}"] = down, up, module.scaling[adapter]
    return found


def save_as_diffusers(pipeline, path):
    models = {name: getattr(pipeline, name) for name in MODELS}
    StableDiffusionXLPipeline.save_lora_weights(
        path,
        **{f"{name}_lora_layers": peft.get_peft_model_state_dict(model) for name, model in models.items()},
        **{f"{name}_lora_adapter_metadata": model.peft_config["default"].to_dict() for name, model in models.items()},
    )


def save_as_kohya(pipeline, path):
    """The UNet under latent-diffusion's names, the text encoders as 'te1' and 'te2'."""
    layout = UNetLayout.of(pipeline.unet.state_dict())
    tensors = {}
    for layer, (down, up, _) in factors_of(pipeline).items():
        component, name = layer.split(".", 1)
        if component == "unet":
            name = unet_name(f"{name}.weight", layout).removesuffix(".weight")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
        name = prefix + name.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": torch.tensor(down), f"{name}.lora_up.weight": torch.tensor(up)}
        tensors[f"{name}.alpha"] = torch.tensor(1.25)
    path.mkdir()
    safetensors.torch.save_file(tensors, path / "any name.safetensors")


@pytest.mark.parametrize(
    ("save", "layers"), [(save_as_diffusers, UNET_LAYERS), (save_as_kohya, ["to_q", "to_out.0", "proj_in", "ff.net.2"])]
)
def test_files_are_read_as_torch_reads_them(folder, sd, tmp_path, save, layers):
    save(torch_pipeline(folder, layers), tmp_path / "lora")
    read = torch_pipeline(folder)
    read.load_lora_weights(tmp_path / "lora")
    ours = our_factors(load_adapter(tmp_path / "lora", sd.params).loras)
    assert_same_factors(ours, factors_of(read))
    assert {name.split(".")[0] for name in ours} == set(MODELS)


@pytest.mark.slow
def test_the_image_is_that_of_torch_in_both_directions(folder, sd, tmp_path):
    latents = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)

    def torch_image(pipeline):
        start = torch.tensor(latents.transpose(0, 3, 1, 2))
        settings = {"num_inference_steps": 5, "guidance_scale": 4.0, "height": 16, "width": 16, "output_type": "np"}
        return pipeline("the photo of it", latents=start, **settings).images

    trained = torch_pipeline(folder, UNET_LAYERS)
    save_as_diffusers(trained, tmp_path / "theirs")
    loras = load_adapter(tmp_path / "theirs", sd.params).loras
    condition = text_condition(sd, ["the photo of it"], loras=loras, sizes=ImageSizes.of((16, 16)))
    sampling = SamplingConfig(steps=5, guidance_scale=4.0, scheduler="checkpoint")
    ours = sample(sd, condition, jnp.asarray(latents), sampling, loras=loras) / 2 + 0.5
    assert relative_error(ours, torch_image(trained)) < 1e-3

    save_lora(tmp_path / "ours", loras)
    read = torch_pipeline(folder)
    assert relative_error(torch_image(read), ours) > 0.05
    read.load_lora_weights(tmp_path / "ours")
    assert_same_factors(our_factors(loras), factors_of(read))
    assert relative_error(torch_image(read), ours) < 1e-3
