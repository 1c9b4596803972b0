"""LoRA files, written and read by diffusers and peft."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.checkpoints.lora_files import LORA_FILE, load_adapter, save_lora
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import text_condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import sample
from utilgen_jax.models.lora import Lora, init_lora

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYERS = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj", "linear_1"]
LAYERS += ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in"]
UNET_CONFIG = {"r": 3, "lora_alpha": 7, "target_modules": LAYERS}
TEXT_CONFIG = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def folder(request, tmp_path_factory):
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp(request.param), family=request.param)


@pytest.fixture(scope="module")
def params(folder):
    return load_stable_diffusion(folder).params


def torch_pipeline(folder, unet=None, text_encoder=None):
    """The checkpoint in torch, with peft's random LoRAs of these settings."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(1)
    for model, config in ((pipeline.unet, unet), (pipeline.text_encoder, text_encoder)):
        if config is not None:
            model.add_adapter(peft.LoraConfig(**config), "default")
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".lora_" in name:
                        parameter.normal_(0, 0.1)
    return pipeline


def factors_of(pipeline):
    """{component and layer: (down, up, scale)} of a pipeline's LoRA, torch's layout."""
    found = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipeline, component).named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                (adapter,) = module.lora_A
                down, up = (factors[adapter].weight.detach().numpy() for factors in (module.lora_A, module.lora_B))
                name = name if component == "unet" else f"text_model.{name}"  # which transformers 5 leaves out
                found[f"{component}.{name}"] = down, up, module.scaling[adapter]
    return found


def our_factors(loras):
    """Returns the same of our LoRAs."""
    found = {}
    for component, lora in loras.items():
        factors, scales = flatten_dict(lora.factors), flatten_dict(lora.scales)
        for *path, _ in scales:
            down, up = (
                value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
                for value in (np.asarray(factors[*path, name]) for name in ("down", "up"))
            )
            found[".".join([component, *path])] = down, up, float(scales[*path, "scale"])
    return found


def assert_same_factors(ours, theirs):
    assert set(ours) == set(theirs) and theirs
    for layer, expected in theirs.items():
        for value, its_expected in zip(ours[layer], expected, strict=True):
            assert np.shape(value) == np.shape(its_expected), layer
            np.testing.assert_allclose(value, its_expected, rtol=1e-6, err_msg=layer)


def save_as_today(pipeline, path):
    models = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    StableDiffusionPipeline.save_lora_weights(
        path,
        **{f"{name}_lora_layers": peft.get_peft_model_state_dict(model) for name, model in models.items()},
        **{f"{name}_lora_adapter_metadata": model.peft_config["default"].to_dict() for name, model in models.items()},
    )


def save_as_training_scripts_do(pipeline, path):
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(model))
        for name, model in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder))
    }
    StableDiffusionPipeline.save_lora_weights(path, **layers)


def save_with_attention_processors(pipeline, path):
    tensors = {}
    for key, tensor in peft.get_peft_model_state_dict(pipeline.unet).items():
        for name in ATTENTION:
            for factor, old in (("lora_A", "down"), ("lora_B", "up")):
                old_key = f".processor.{name.removesuffix('.0')}_lora.{old}.weight"
                key = key.replace(f".{name}.{factor}.weight", old_key)
        tensors[f"unet.{key}"] = tensor
    for key, tensor in peft.get_peft_model_state_dict(pipeline.text_encoder).items():
        for name, its_old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            for factor, old in (("lora_A", "down"), ("lora_B", "up")):
                key = key.replace(f".{name}.{factor}.weight", f".{its_old}_lora.{old}.weight")
        tensors[f"text_encoder.text_model.{key}"] = tensor
    path.mkdir()
    safetensors.torch.save_file(tensors, path / LORA_FILE)


def save_as_kohya(pipeline, path):
    tensors = {}
    for name, model in (("unet", pipeline.unet), ("text_encoder.text_model", pipeline.text_encoder)):
        tensors |= {f"{name}.{key}": tensor for key, tensor in peft.get_peft_model_state_dict(model).items()}
    tensors = {
        key.replace("lora_te1_", "lora_te_"): value for key, value in convert_state_dict_to_kohya(tensors).items()
    }
    tensors = {key: torch.tensor(1.25) if key.endswith(".alpha") else value for key, value in tensors.items()}
    path.mkdir()
    safetensors.torch.save_file(tensors, path / "any name.safetensors")


UNET_STYLES = {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION}
TEXT_STYLES = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]}


@pytest.mark.parametrize(
    ("save", "unet", "text_encoder"),
    [
        (
            save_as_today,
            UNET_CONFIG | {"rank_pattern": {"attn2.to_k": 5}, "alpha_pattern": {"attn1.to_q": 2, "conv1": 9}},
            TEXT_CONFIG | {"alpha_pattern": {"encoder.layers.1.self_attn.q_proj": 8}, "use_rslora": True},
        ),
        (save_as_training_scripts_do, UNET_STYLES, TEXT_STYLES | {"target_modules": TEXT_CONFIG["target_modules"]}),
        (save_with_attention_processors, UNET_STYLES, TEXT_STYLES),
        (save_as_kohya, UNET_STYLES | {"target_modules": LAYERS}, TEXT_STYLES),
    ],
)
def test_files_of_torch_are_read_as_torch_reads_them(folder, params, tmp_path, save, unet, text_encoder):
    trained = torch_pipeline(folder, unet, text_encoder)
    save(trained, tmp_path / "lora")
    read = torch_pipeline(folder)
    read.load_lora_weights(tmp_path / "lora")
    assert_same_factors(our_factors(load_adapter(tmp_path / "lora", params).loras), factors_of(read))
    if save is not save_as_kohya:  # it is given other alphas
        assert_same_factors(factors_of(read), factors_of(trained))


def test_a_file_of_one_model_needs_no_prefix(folder, params, tmp_path):
    pipeline = torch_pipeline(folder, UNET_CONFIG)
    pipeline.unet.save_lora_adapter(tmp_path / "diffusers")
    assert_same_factors(our_factors(load_adapter(tmp_path / "diffusers", params).loras), factors_of(pipeline))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_folder_of_peft(folder, params, tmp_path):
    config = peft.LoraConfig(**TEXT_CONFIG, init_lora_weights=False)
    pipeline = torch_pipeline(folder)
    peft.get_peft_model(pipeline.text_encoder, config).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert_same_factors(our_factors(load_adapter(tmp_path, params).loras), factors_of(pipeline))


def random_loras(params, targets):
    """LoRAs with random factors; with a rank and an alpha for the layers of each pattern."""
    rng = np.random.default_rng(0)
    loras = {}
    for name, patterns in targets.items():
        factors, scales = {}, {}
        for index, pattern in enumerate(patterns):
            rank = 2 + index
            lora = jax.eval_shape(partial(init_lora, rank=rank, targets=(pattern,)), params[name], jax.random.key(0))
            for path, leaf in flatten_dict(lora.factors).items():
                factors[path] = 0.1 * rng.standard_normal(leaf.shape, np.float32)
            scales |= {path: np.float32((5 + index) / rank) for path in flatten_dict(lora.scales)}
        loras[name] = Lora(unflatten_dict(factors), unflatten_dict(scales))
    return loras


@pytest.mark.parametrize(
    "targets",
    [
        {
            "unet": (r"to_[qk]$", r"to_v$|\.ff\.", r"\.conv", r"proj_(in|out)$", r"^conv_out$|^time_embedding"),
            "text_encoder": ("attention", "feed_forward"),
        },
        {"text_encoder": ("feed_forward",)},
    ],
)
def test_torch_reads_our_files(folder, params, tmp_path, targets):
    loras = random_loras(params, targets)
    path = save_lora(tmp_path / "lora", loras)
    assert path == tmp_path / "lora" / LORA_FILE
    pipeline = torch_pipeline(folder)
    pipeline.load_lora_weights(tmp_path / "lora")
    assert_same_factors(our_factors(loras), factors_of(pipeline))
    assert_same_factors(our_factors(load_adapter(path, params).loras), our_factors(loras))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_the_image_is_that_of_torch_in_both_directions(folder, tmp_path):
    latents = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    prompt, steps, guidance_scale = "the photo of it", 5, 4.0

    def torch_image(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        return pipeline(
            prompt,
            latents=torch.tensor(latents.transpose(0, 3, 1, 2)),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="np",
        ).images

    trained = torch_pipeline(folder, UNET_CONFIG, TEXT_CONFIG)
    save_as_today(trained, tmp_path / "theirs")
    expected = torch_image(trained)
    sd = load_stable_diffusion(folder)
    loras = load_adapter(tmp_path / "theirs", sd.params).loras
    condition = text_condition(sd, [prompt], loras=loras)
    sampling = SamplingConfig(steps=steps, guidance_scale=guidance_scale)
    ours = sample(sd, condition, jnp.asarray(latents), sampling, loras=loras) / 2 + 0.5
    assert relative_error(ours, expected) < 1e-3

    save_lora(tmp_path / "ours", loras)
    read = torch_pipeline(folder)
    assert relative_error(torch_image(read), expected) > 0.05
    read.load_lora_weights(tmp_path / "ours")
    assert relative_error(torch_image(read), ours) < 1e-3


@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_all_mismatches_are_reported_at_once(params, tmp_path):
    zeros = torch.zeros
    query = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    key, value = query.replace("to_q", "to_k"), query.replace("to_q", "to_v")
    tensors = {
        f"{query}.lora_A.weight": zeros(2, 31),
        f"{query}.lora_B.weight": zeros(32, 2),
        f"{key}.lora_A.weight": zeros(2, 32),
        f"{value}.lora_A.weight": zeros(2, 32),
        f"{value}.lora_B.weight": zeros(32, 3),
        "unet.conv_in.lora_A.weight": zeros(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": zeros(16, 2, 1, 1),
        "unet.conv_in.alpha": zeros(2),
        "unet.conv_out.lora_A.weight": zeros(2, 16, 3, 3),
        "unet.conv_out.lora_B.weight": zeros(4, 2, 1, 1),
        "unet.conv_out.lora_magnitude_vector": zeros(16),
        "unet.time_embedding.linear_1.hada_w1_a": zeros(64, 2),
        "unet.time_embedding.linear_2.lokr_w1": zeros(2, 2),
        "unet.time_embedding.linear_2.lokr_w2": zeros(2, 2),
        "unet.conv_in.lora_E": zeros(2),
        "unet.conv_inn.lora_A.weight": zeros(2, 4, 3, 3),
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": zeros(2, 32),
        "lora_unet_input_blocks_9_1_proj_in.lora_down.weight": zeros(2, 4),
    }
    path = tmp_path / LORA_FILE
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(InputError, match="does not fit the model") as error:
        load_adapter(path, params)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert set(lines[1:]) == {
        f"{query}: its factor 'down' has shape (2, 31), the layer needs (2, 32)",
        f"{key}: its factor 'up' is missing",
        f"{value}: its factor 'up' has shape (32, 3), the layer needs (32, 2)",
        "unet.conv_in: its alpha has shape (2,), not one number",
        "unet.conv_out: its magnitude has shape (16,), the layer needs (4,)",
        "unet.time_embedding.linear_1: its factor 'hada_w1_b' is missing",
        "unet.time_embedding.linear_2: its factors make a weight (4, 4), the layer has (64, 64)",
        "unknown key: unet.conv_in.lora_E",
        "the model has no such layer: unet.conv_inn.lora_A.weight",
        "the model has no such layer: text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "the model has no such layer: lora_unet_input_blocks_9_1_proj_in.lora_down.weight",
    }
    assert str(path) in lines[0]


@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_a_projection_may_be_stored_as_linear_layer_or_convolution(params, tmp_path):
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    name = "unet.mid_block.attentions.0.proj_in"
    stored = []
    for index, (shape_down, shape_up) in enumerate([((2, 32), (32, 2)), ((2, 32, 1, 1), (32, 2, 1, 1))]):
        tensors = {f"{name}.lora_A.weight": down.reshape(shape_down), f"{name}.lora_B.weight": up.reshape(shape_up)}
        safetensors.torch.save_file(tensors, tmp_path / f"{index}.safetensors")
        stored.append(our_factors(load_adapter(tmp_path / f"{index}.safetensors", params).loras))
    assert_same_factors(*stored)
    assert stored[0][name][0].shape == (2, 32, 1, 1)


@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_files_that_are_no_lora_are_refused(params, tmp_path):
    with pytest.raises(InputError, match="0 safetensors files"):
        load_adapter(tmp_path, params)
    with pytest.raises(InputError, match="no such file"):
        load_adapter(tmp_path / "lora.safetensors", params)
    with pytest.raises(InputError, match="pickle"):
        load_adapter(tmp_path / "pytorch_lora_weights.bin", params)
    path = tmp_path / LORA_FILE
    safetensors.torch.save_file({}, path)
    with pytest.raises(InputError, match="has no tensors"):
        load_adapter(path, params)
    for text in ("{", "[1]"):
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"lora_adapter_metadata": text})
        with pytest.raises(InputError, match="lora_adapter_metadata is not (a )?JSON"):
            load_adapter(tmp_path, params)
