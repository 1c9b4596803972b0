"""Low-rank terms against peft's, on diffusers' UNet and transformers' CLIP text encoder with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as TorchCLIPTextModel
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from tests.torch_parity import params_from_torch, relative_error, scope_path
from utilgen_jax.errors import InputError
from utilgen_jax.models.clip_text import CLIPTextModel
from utilgen_jax.models.layers import Conv, Dense
from utilgen_jax.models.lora import Lora, init_lora, layer_shapes, match_targets, merge_lora, unmerge_lora, with_scale
from utilgen_jax.models.unet import UNet2DConditionModel

RANK, ALPHA = 3, 7.0
UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "eos_token_id": 49,
}
ALL_TARGETS = ("attention", "feed_forward", "convolutions", r"proj_(in|out)$", r"^conv_(in|out)$", r"^time_embedding\.")


def torch_unet(**settings):
    torch.manual_seed(0)
    return TorchUNet(**UNET, **settings).eval()


def torch_text_encoder():
    torch.manual_seed(0)
    return TorchCLIPTextModel(CLIPTextConfig(**TEXT)).eval()


def linen_params(model):
    """Returns a torch model's parameters; CLIP's under `text_model`, which transformers 5 omits."""
    params = params_from_torch(model.state_dict())
    return {"text_model": params} if isinstance(model, TorchCLIPTextModel) else params


def with_peft(model, names):
    """Returns the model with peft's LoRA on some layers, with nonzero `up`; and our equivalent LoRA."""
    prefix = ["text_model"] if isinstance(model, TorchCLIPTextModel) else []
    names = [name.removeprefix("text_model.") for name in names]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
    model = peft.inject_adapter_in_model(config, model)
    factors, scales = {}, {}
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        with torch.no_grad():
            parameter.normal_(0, 0.2)
        scope = (*prefix, *scope_path(name.partition(".lora_")[0]))
        value = parameter.detach().numpy()
        factors[*scope, "down" if "lora_A" in name else "up"] = value.transpose(
            (1, 0) if value.ndim == 2 else (2, 3, 1, 0)
        )
        scales[*scope, "scale"] = np.float32(ALPHA / RANK)
    return model, Lora(unflatten_dict(factors), unflatten_dict(scales))


def unet_inputs():
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, 4, 6, 4), np.float32),
        np.array([3, 900]),
        rng.standard_normal((2, 5, 12), np.float32),
    )


def torch_prediction(model, sample, timesteps, states):
    with torch.no_grad():
        prediction = model(torch.tensor(sample.transpose(0, 3, 1, 2)), torch.tensor(timesteps), torch.tensor(states))
    return prediction.sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_unet_agrees_with_peft_for_all_kinds_of_layers():
    oracle = torch_unet()
    params = linen_params(oracle)
    names = match_targets(list(layer_shapes(params)), ALL_TARGETS)
    model = UNet2DConditionModel.from_config(UNET)
    inputs = unet_inputs()
    before = torch_prediction(oracle, *inputs)
    oracle, lora = with_peft(oracle, names)
    apply = jax.jit(lambda params, lora: model.apply({"params": params, **lora.variables()}, *inputs))
    expected = torch_prediction(oracle, *inputs)
    assert relative_error(apply(params, lora), expected) < 1e-5
    assert relative_error(before, expected) > 0.1
    # At scale 0 the model is as it was; a change of scale compiles nothing.
    assert relative_error(apply(params, with_scale(lora, 0.0)), before) < 1e-5
    for module in oracle.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(0.3)
    assert relative_error(apply(params, with_scale(lora, 0.3)), torch_prediction(oracle, *inputs)) < 1e-5
    assert apply._cache_size() == 1


@pytest.mark.slow
def test_text_encoder_agrees_with_peft():
    oracle = torch_text_encoder()
    params = linen_params(oracle)
    oracle, lora = with_peft(oracle, match_targets(list(layer_shapes(params)), ("attention", "feed_forward")))
    ids = np.array([[48, 3, 8, 49, 49], [48, 7, 1, 6, 49]])
    with torch.no_grad():
        expected = oracle(torch.tensor(ids)).last_hidden_state.numpy()
    model = CLIPTextModel.from_config(TEXT)
    ours = model.apply({"params": params, **lora.variables()}, ids).last_hidden_state
    assert relative_error(ours, expected) < 1e-5
    assert relative_error(model.apply({"params": params}, ids).last_hidden_state, expected) > 0.1


@pytest.mark.parametrize(
    ("target", "layer", "inside"),
    [
        ("attention", torch.nn.Linear, (Attention, CLIPAttention)),
        ("feed_forward", torch.nn.Linear, (FeedForward, CLIPMLP)),
        ("convolutions", torch.nn.Conv2d, (ResnetBlock2D, Downsample2D, Upsample2D)),
    ],
)
def test_groups_are_all_layers_of_that_kind(target, layer, inside):
    for model, prefix in ((torch_unet(), ""), (torch_text_encoder(), "text_model.")):
        expected = {
            f"{prefix}{name}.{child}"
            for name, module in model.named_modules()
            if isinstance(module, inside)
            for child, grandchild in module.named_modules()
            if isinstance(grandchild, layer)
        }
        names = list(layer_shapes(linen_params(model)))
        if expected:
            assert set(match_targets(names, (target,))) == expected
        else:
            with pytest.raises(InputError, match="matches no layer"):
                match_targets(names, (target,))


def test_merged_weights_are_those_of_peft_and_unmerging_gives_them_back():
    oracle = torch_unet()
    params = linen_params(oracle)
    targets = (r"^mid_block.*(to_q|to_out\.0|net\.2|proj_in|conv1)$", r"^conv_in$", r"^down_blocks.*\.conv$")
    oracle, lora = with_peft(oracle, match_targets(list(layer_shapes(params)), targets))
    for module in oracle.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    state = {name.replace(".base_layer", ""): value for name, value in oracle.state_dict().items()}
    expected = params_from_torch({name: value for name, value in state.items() if ".lora_" not in name})
    merged = jax.jit(merge_lora)(params, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), merged, expected)
    assert relative_error(merged["conv_in"]["kernel"], params["conv_in"]["kernel"]) > 0.1
    back = jax.jit(unmerge_lora)(merged, lora)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), back, params)


def test_merging_keeps_the_dtype_of_the_weights():
    params = {"layer": {"kernel": jnp.ones((4, 3), jnp.bfloat16), "bias": jnp.ones(3, jnp.bfloat16)}}
    lora = jax.tree.map(jnp.ones_like, init_lora(params, jax.random.key(0), rank=2, targets=("layer",)))
    merged = merge_lora(params, lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert (merged["layer"]["kernel"] == 3).all() and (merged["layer"]["bias"] == 1).all()


def test_initial_factors_are_distributed_as_those_of_peft():
    oracle = torch.nn.Sequential(torch.nn.Linear(300, 40), torch.nn.Conv2d(20, 30, 3))
    params = {
        "0": {"kernel": jax.ShapeDtypeStruct((300, 40), jnp.float32)},
        "1": {"kernel": jax.ShapeDtypeStruct((3, 3, 20, 30), jnp.float32)},
    }
    lora = init_lora(params, jax.random.key(0), rank=16, alpha=4.0, targets=("^[01]$",))
    oracle = peft.inject_adapter_in_model(peft.LoraConfig(r=16, target_modules=["0", "1"]), oracle)
    for name in params:
        down, up = (np.asarray(lora.factors[name][factor]) for factor in ("down", "up"))
        theirs = oracle.get_submodule(name).lora_A["default"].weight.detach().numpy()
        assert down.size == theirs.size and down.dtype == up.dtype == jnp.float32
        np.testing.assert_allclose(np.abs(down).max(), np.abs(theirs).max(), rtol=0.01)
        np.testing.assert_allclose(down.std(), theirs.std(), rtol=0.03)
        assert abs(down.mean()) < 0.05 * np.abs(theirs).max()
        assert not up.any() and not oracle.get_submodule(name).lora_B["default"].weight.any()
        assert lora.scales[name]["scale"] == 0.25
    assert lora.factors["0"]["up"].shape == (16, 40) and lora.factors["1"]["up"].shape == (1, 1, 16, 30)
    assert (
        np.abs(np.corrcoef(lora.factors["0"]["down"][:180, 0], lora.factors["1"]["down"][..., 0].ravel())[0, 1]) < 0.3
    )


@pytest.mark.parametrize("kind", [Dense, Conv])
def test_gradient_is_that_of_the_merged_kernel_also_when_rematerialised(kind):
    settings = {"features": 8}
    if kind is Conv:
        settings |= {"kernel_size": (3, 3), "strides": 2, "padding": ((0, 1), (0, 1))}
    layer, rematerialised = kind(**settings), nn.remat(kind)(**settings)
    inputs = jax.random.normal(jax.random.key(0), (2, 6, 6, 5))
    params = jax.jit(layer.init)(jax.random.key(1), inputs)
    factors = init_lora({"layer": params["params"]}, jax.random.key(2), rank=2, targets=("layer",)).factors["layer"]
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
    scales = {"scale": jnp.float32(1.5)}

    def loss(layer, factors):
        return jnp.sum(layer.apply({**params, "lora": factors, "lora_scale": scales}, inputs) ** 2)

    def merged_loss(factors):
        merged = merge_lora({"layer": params["params"]}, Lora({"layer": factors}, {"layer": scales}))
        return jnp.sum(layer.apply({"params": merged["layer"]}, inputs) ** 2)

    expected = jax.jit(jax.grad(merged_loss))(factors)
    for ours in (layer, rematerialised):
        gradient = jax.jit(jax.grad(lambda factors, ours=ours: loss(ours, factors)))(factors)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ("attention", "conv_ni")}, "'conv_ni' matches no layer.* conv_in"),
        ({"targets": ("atention",)}, "nearest are attention"),
        ({"targets": ("to_q(",)}, "not a regular expression"),
        ({"targets": ()}, "no targets"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    model = UNet2DConditionModel.from_config(UNET)
    params = jax.eval_shape(lambda key: model.init(key, **model.example_inputs()), jax.random.key(0))["params"]
    with pytest.raises(InputError, match=message):
        init_lora(params, jax.random.key(0), **{"rank": 2} | arguments)


def test_a_lora_of_another_model_is_not_merged():
    lora = init_lora({"a": {"kernel": jnp.zeros((2, 2))}}, jax.random.key(0), rank=1, targets=("a",))
    with pytest.raises(InputError, match="no layer a"):
        merge_lora({"b": {"kernel": jnp.zeros((2, 2))}}, lora)
