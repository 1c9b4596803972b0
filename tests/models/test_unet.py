"""The UNet against diffusers' torch UNet with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet
from jax.extend.core import jaxprs_in_params

from tests.torch_parity import flat_shapes, params_from_torch, relative_error
from utilgen_jax.errors import InputError
from utilgen_jax.models.gradient_checkpointing import GRADIENT_CHECKPOINTING
from utilgen_jax.models.unet import UNet2DConditionModel

BASE = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
CONFIGS = {
    "sd15": BASE | {"layers_per_block": 2},
    "sd21": BASE
    | {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [2, 4, 8],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "unclip": BASE
    | {
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 20,
    },
    "sdxl": BASE
    | {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4, 8],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 3],
        "reverse_transformer_layers_per_block": [2, 1, 1],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
    },
    "glyphs": BASE
    | {
        "block_out_channels": [48, 96],
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "norm_num_groups": 16,
    },
    "other settings": BASE
    | {
        "in_channels": 5,
        "out_channels": 3,
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-3,
    },
}


def random_inputs(config, height=8, width=8):
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((3, height, width, config.get("in_channels", 4)), np.float32),
        "timesteps": np.array([0, 437, 999], np.int32),
        "encoder_hidden_states": rng.standard_normal((3, 7, config["cross_attention_dim"]), np.float32),
    }
    if "class_embed_type" in config:
        shape = (3, config["projection_class_embeddings_input_dim"])
        inputs["class_labels"] = rng.standard_normal(shape, np.float32)
    if "addition_embed_type" in config:
        pooled, sizes = rng.standard_normal((3, 20), np.float32), rng.integers(0, 2048, (3, 6))
        inputs["class_labels"] = np.concatenate([pooled, sizes], axis=1).astype(np.float32)
    return inputs


def torch_model(config):
    torch.manual_seed(0)
    model = TorchUNet(**config).eval()
    with torch.no_grad():  # torch's norms start at one and zero, where a mistaken scale or bias does not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def torch_output(model, sample, timesteps, encoder_hidden_states, class_labels=None):
    added = None
    if model.config.addition_embed_type is not None:
        pooled, sizes = torch.from_numpy(class_labels).split([20, 6], dim=1)
        added, class_labels = {"text_embeds": pooled, "time_ids": sizes}, None
    with torch.no_grad():
        output = model(
            torch.from_numpy(sample.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            torch.from_numpy(encoder_hidden_states),
            class_labels=None if class_labels is None else torch.from_numpy(class_labels),
            added_cond_kwargs=added,
        ).sample
    return output.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_output_is_that_of_torch(name):
    oracle = torch_model(CONFIGS[name])
    inputs = random_inputs(CONFIGS[name], height=8, width=12)
    if name == "glyphs":
        inputs["timesteps"] = np.array(437)  # one timestep for the whole batch
    model = UNet2DConditionModel.from_config(dict(oracle.config))
    output = jax.jit(model.apply)({"params": params_from_torch(oracle.state_dict())}, **inputs)
    assert output.dtype == jnp.float32
    assert relative_error(output, torch_output(oracle, **inputs)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 1])
def test_sides_that_cannot_be_halved_evenly(padding):
    config = CONFIGS["sd21"] | {"downsample_padding": padding}
    oracle = torch_model(config)
    inputs = random_inputs(config, height=7, width=9)
    model = UNet2DConditionModel.from_config(config)
    output = jax.jit(model.apply)({"params": params_from_torch(oracle.state_dict())}, **inputs)
    assert relative_error(output, torch_output(oracle, **inputs)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_have_the_names_and_shapes_of_torch(name):
    oracle = torch_model(CONFIGS[name])
    model = UNet2DConditionModel.from_config(CONFIGS[name])
    ours = jax.eval_shape(lambda key: model.init(key, **model.example_inputs()), jax.random.key(0))["params"]
    assert flat_shapes(ours) == flat_shapes(params_from_torch(oracle.state_dict()))


@pytest.mark.slow
def test_parameter_gradient_is_that_of_torch():
    config = CONFIGS["unclip"]
    oracle = torch_model(config)
    inputs = random_inputs(config)
    target = np.random.default_rng(1).standard_normal(inputs["sample"].shape, np.float32)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    prediction = oracle(
        tensors["sample"].permute(0, 3, 1, 2),
        tensors["timesteps"],
        tensors["encoder_hidden_states"],
        class_labels=tensors["class_labels"],
    ).sample
    torch.nn.functional.mse_loss(prediction.permute(0, 2, 3, 1), torch.from_numpy(target)).backward()
    expected = params_from_torch({name: parameter.grad for name, parameter in oracle.named_parameters()})

    params = params_from_torch(oracle.state_dict())
    tolerance = 1e-4 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    model = UNet2DConditionModel.from_config(config)
    gradient = jax.jit(jax.grad(lambda params: jnp.mean((model.apply({"params": params}, **inputs) - target) ** 2)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=tolerance), gradient(params), expected)


def loss_of_embeddings(gradient_checkpointing):
    """Returns (a loss as a function of the text embeddings, text embeddings, the number of parameters)."""
    types = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    config = BASE | {"block_out_channels": [32]} | types
    model = UNet2DConditionModel.from_config(config, gradient_checkpointing=gradient_checkpointing)
    params = params_from_torch(torch_model(config).state_dict())
    inputs = random_inputs(config)
    embeddings = inputs.pop("encoder_hidden_states")

    def loss(embeddings):
        return jnp.sum(model.apply({"params": params}, encoder_hidden_states=embeddings, **inputs) ** 2)

    return loss, embeddings, sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_gradient_checkpointing_keeps_less():
    kept = {}
    for name in GRADIENT_CHECKPOINTING:
        loss, embeddings, num_params = loss_of_embeddings(name)
        pullback = jax.eval_shape(lambda embeddings, loss=loss: jax.vjp(loss, embeddings)[1], embeddings)
        kept[name] = sum(leaf.size for leaf in jax.tree.leaves(pullback)) - num_params
    assert kept["none"] > 3 * kept["products"] > 9 * kept["layers"] > 9 * kept["blocks"] > 0


@pytest.mark.slow
def test_gradient_checkpointing_leaves_the_gradient():
    gradients = {}
    for name in GRADIENT_CHECKPOINTING:
        loss, embeddings, _ = loss_of_embeddings(name)
        gradients[name] = jax.jit(jax.grad(loss))(embeddings)
        assert relative_error(gradients[name], gradients["none"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "tolerance"),
    [
        (jnp.bfloat16, jnp.bfloat16, 0.05),
        (jnp.bfloat16, jnp.float32, 0.05),
        (jnp.float16, jnp.float16, 0.005),
        (jnp.float32, jnp.bfloat16, 0.02),
        (jnp.float32, jnp.float16, 0.002),
    ],
)
def test_other_precisions_are_near_float32(dtype, param_dtype, tolerance):
    oracle = torch_model(CONFIGS["unclip"])
    inputs = random_inputs(CONFIGS["unclip"])
    model = UNet2DConditionModel.from_config(CONFIGS["unclip"], dtype=dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype), params_from_torch(oracle.state_dict()))
    output = jax.jit(model.apply)({"params": params}, **inputs)
    assert output.dtype == dtype
    assert relative_error(output, torch_output(oracle, **inputs)) < tolerance


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_float32_parts_are_computed_in_float32(dtype):
    """Exponentials, reductions, roots and sinusoids: those of the softmax, the norms' statistics, the timesteps."""
    model = UNet2DConditionModel.from_config(CONFIGS["unclip"], dtype=dtype)
    inputs = random_inputs(CONFIGS["unclip"])
    variables = jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))
    sensitive = {"exp", "rsqrt", "sqrt", "sin", "cos", "reduce_sum", "reduce_max", "div"}
    found = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in sensitive:
                found.add(equation.primitive.name)
                assert all(out.aval.dtype != dtype for out in equation.outvars), equation
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(lambda variables: model.apply(variables, **inputs))(variables).jaxpr)
    assert {"exp", "rsqrt", "sin", "reduce_sum"} <= found


@pytest.mark.slow
def test_stable_diffusion_sizes():
    """Stable Diffusion 1.5's UNet has 860 M parameters."""
    model = UNet2DConditionModel.from_config({"cross_attention_dim": 768, "_class_name": "UNet2DConditionModel"})
    params = jax.eval_shape(lambda key: model.init(key, **model.example_inputs()), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 859_520_964


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type = 'UNetMidBlock2D'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"only_cross_attention": True}, "only_cross_attention"),
        ({"transformer_layers_per_block": [[1, 2], 1]}, "transformer_layers_per_block"),
        ({"transformer_layers_per_block": [1, 2, 3]}, "transformer_layers_per_block"),
        ({"reverse_transformer_layers_per_block": [[1, 2], 1]}, "reverse_transformer_layers_per_block"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        (CONFIGS["sdxl"] | {"projection_class_embeddings_input_dim": 48}, "projection_class_embeddings_input_dim = 48"),
        (CONFIGS["sdxl"] | {"class_embed_type": "projection"}, "exclude each other"),
        ({"setting_of_tomorrow": 3}, "setting_of_tomorrow = 3"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        ({"attention_head_dim": [1, 2, 4]}, "attention_head_dim"),
        ({"attention_head_dim": 5}, "attention_head_dim"),
        ({"attention_head_dim": 0}, "attention_head_dim"),
        ({"norm_num_groups": 7}, "norm_num_groups"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"cross_attention_dim": [24, 24]}, "cross_attention_dim"),
        ({"downsample_padding": 2}, "downsample_padding"),
    ],
)
def test_unsupported_setting_is_refused_by_name(change, named):
    with pytest.raises(InputError, match="UNet config") as error:
        UNet2DConditionModel.from_config(BASE | change)
    assert named in str(error.value)


def test_unknown_gradient_checkpointing_lists_the_known_names():
    with pytest.raises(InputError, match="'all' is unknown; known are none, products, layers, blocks"):
        UNet2DConditionModel.from_config(BASE, gradient_checkpointing="all")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd15", {"class_labels": jnp.zeros((3, 20))}, "class_labels are given"),
        ("unclip", {"class_labels": None}, "class_labels are missing"),
        ("sdxl", {"class_labels": None}, "class_labels are missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name, change, message):
    model = UNet2DConditionModel.from_config(CONFIGS[name])
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), **random_inputs(CONFIGS[name]) | change)
