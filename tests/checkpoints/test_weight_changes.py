"""DoRA, LoHa and LoKr: the outputs of peft's model, from the files that it writes, and from LyCORIS' names."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel as TorchUNet

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.checkpoints.adapter_config import ADAPTER_FIELDS, read_adapter_config
from utilgen_jax.checkpoints.lora_files import load_adapter
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter_files import load_adapter_files
from utilgen_jax.generator.loading import load_stable_diffusion

LAYERS = ["to_q", "to_v", "ff.net.2", "conv1", "proj_in", "downsamplers.0.conv", "time_emb_proj"]
CONFIGS = {
    "DoRA": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=LAYERS),
    "LoHa": peft.LoHaConfig(r=3, alpha=5, target_modules=LAYERS, alpha_pattern={"to_q": 2}),
    "LoHa of convolutions": peft.LoHaConfig(r=3, alpha=5, target_modules=LAYERS, use_effective_conv2d=True),
    "LoKr": peft.LoKrConfig(r=3, alpha=5, target_modules=LAYERS, rank_pattern={"to_q": 2}),
    "LoKr of both": peft.LoKrConfig(r=2, alpha=5, target_modules=LAYERS, decompose_both=True, decompose_factor=8),
    "LoKr of convolutions": peft.LoKrConfig(r=2, alpha=3, target_modules=LAYERS, use_effective_conv2d=True),
    "LoKr of full matrices": peft.LoKrConfig(r=64, alpha=32, target_modules=LAYERS),
}
INPUTS = {
    "sample": np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32),
    "timesteps": np.array([7]),
    "encoder_hidden_states": np.random.default_rng(1).normal(size=(1, 5, 32)).astype(np.float32),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def sd(folder):
    return load_stable_diffusion(folder)


@pytest.fixture(scope="module")
def apply(sd):
    """Our UNet of these weights, and of a plain LoRA if there is one: its output as torch has it."""
    unet = jax.jit(lambda variables: sd.unet.apply(variables, **INPUTS))

    def output(params, loras=None):
        return np.asarray(unet({"params": params} | (loras or {}))).transpose(0, 3, 1, 2)

    return output


def torch_unet(folder, config, seed=1):
    """Torch's UNet with a random adapter."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(TorchUNet.from_pretrained(folder / "unet"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif any(part in name for part in (".lora_", ".hada_", ".lokr_")):
                parameter.normal_(0, 0.3)
    return model


def torch_output(model):
    sample = torch.tensor(INPUTS["sample"].transpose(0, 3, 1, 2))
    with torch.no_grad():
        return model(sample, torch.tensor(7), torch.tensor(INPUTS["encoder_hidden_states"])).sample.numpy()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.parametrize("strength", [pytest.param(1.0, marks=pytest.mark.slow), 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_peft(folder, sd, apply, tmp_path, name, strength):
    model = torch_unet(folder, CONFIGS[name])
    model.save_pretrained(tmp_path)
    for module in model.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.scaling = {key: strength * value for key, value in module.scaling.items()}
    expected = torch_output(model)
    adapters = load_adapter_files([(tmp_path, strength)], sd.architecture)
    assert not adapters.loras and set(adapters.changes) == {"unet"}
    assert relative_error(apply(adapters.changed("unet", sd.params["unet"])), expected) < 1e-4
    assert relative_error(apply(sd.params["unet"]), expected) > 1e-2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_several_files_add_up(folder, sd, apply, tmp_path):
    """As peft's active adapters do: each change is of the model's own weight."""
    configs = [CONFIGS["DoRA"], peft.LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1"])]
    for seed, config in enumerate(configs):
        torch_unet(folder, config, seed).save_pretrained(tmp_path / str(seed))
    model = peft.PeftModel.from_pretrained(TorchUNet.from_pretrained(folder / "unet"), tmp_path / "0", "a")
    model.load_adapter(tmp_path / "1", "b")
    model.base_model.set_adapter(["a", "b"])
    adapters = load_adapter_files([(tmp_path / "0", 1.0), (tmp_path / "1", 1.0)], sd.architecture)
    params = adapters.changed("unet", sd.params["unet"])
    assert relative_error(apply(params, adapters.loras["unet"].variables()), torch_output(model)) < 1e-4


@pytest.mark.parametrize("name", ["DoRA", "LoHa", "LoKr of both"])
def test_the_names_of_lycoris(folder, sd, apply, tmp_path, name):
    model = torch_unet(folder, dataclasses.replace(CONFIGS[name], alpha_pattern={}))
    tensors = {}
    for key, tensor in peft.get_peft_model_state_dict(model).items():
        key = key.removeprefix("base_model.model.")
        layer, _, factor = key.removesuffix(".weight").rpartition(".")
        factor = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "lora_magnitude_vector": "dora_scale"}.get(
            factor, factor
        )
        layer = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{layer}.{factor}": tensor.contiguous(), f"{layer}.alpha": torch.tensor(5.0)}
    safetensors.torch.save_file(tensors, tmp_path / "any.safetensors")
    adapters = load_adapter_files([(tmp_path / "any.safetensors", 1.0)], sd.architecture)
    assert relative_error(apply(adapters.changed("unet", sd.params["unet"])), torch_output(model)) < 1e-4


def test_weights_keep_their_dtype(folder, sd, tmp_path):
    torch_unet(folder, CONFIGS["LoHa"]).save_pretrained(tmp_path)
    adapters = load_adapter_files([(tmp_path, 1.0)], sd.architecture)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), sd.params["unet"])
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters.changed("unet", half))} == {jnp.dtype(jnp.bfloat16)}
    assert adapters.changed("vae", half) is half


@pytest.mark.parametrize("kind", [peft.LoraConfig, peft.LoHaConfig, peft.LoKrConfig])
def test_every_field_of_peft_is_in_the_table_and_its_default_is_supported(folder, tmp_path, kind):
    assert {field.name for field in dataclasses.fields(kind)} <= set(ADAPTER_FIELDS)
    kind(target_modules=["to_q"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    read_adapter_config(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2]]},
        {"lora_bias": True},
        {"peft_type": "IA3"},
        {"of_tomorrow": 3},
        *[{"lora_alpha": value} for value in (None, [3], "3", True)],
        *[{"r": value} for value in (None, 0, [3], 2.5)],
        *[{"alpha_pattern": value} for value in ([], 3, {"to_q": None}, {"to_q": "1"})],
        *[{"rank_pattern": value} for value in ([], 3, {"to_q": 0})],
    ],
)
def test_a_field_of_peft_that_is_not_supported_is_refused_by_name(sd, tmp_path, change):
    (tmp_path / "adapter_config.json").write_text(json.dumps(change))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"adapter_config.json: {next(iter(change))} = "):
        load_adapter(tmp_path, sd.params)
