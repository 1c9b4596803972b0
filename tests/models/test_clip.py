"""CLIP's text and vision encoders against transformers' torch modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.torch_parity import flat_shapes, params_from_torch, relative_error
from utilgen_jax.errors import InputError
from utilgen_jax.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection

WIDTHS = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 12,
}
TEXT = WIDTHS | {
    "vocab_size": 50,
    "max_position_embeddings": 9,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 49,
}
VISION = WIDTHS | {"image_size": 12, "patch_size": 4}

# Rows of different lengths, padded with the end-of-text token as CLIP does, with 2 as an ordinary token among them.
INPUT_IDS = np.array([[48, 7, 2, 31, 49, 49, 49, 49], [48, 3, 4, 5, 6, 2, 8, 49]], np.int32)


def torch_model(model_class, config):
    """A torch module in which no parameter keeps a trivial value (biases 0, norms 1)."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def text_params(oracle):
    """The linen parameters of a torch text encoder.

    CLIPTextModel lost its 'text_model.' level in transformers 5; checkpoints written before have it, and so have we.
    """
    params = params_from_torch(oracle.state_dict())
    return params if "text_model" in params else {"text_model": params}


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(("hidden_act", "eos_token_id"), [("quick_gelu", 49), ("gelu", 2)])
def test_text_parity_with_transformers(hidden_act, eos_token_id, projection):
    torch_class = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    linen_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    config = transformers.CLIPTextConfig(**TEXT | {"hidden_act": hidden_act, "eos_token_id": eos_token_id})
    oracle = torch_model(torch_class, config)
    model = linen_class.from_config(config.to_dict())
    params = text_params(oracle)
    assert flat_shapes(jax.eval_shape(model.init, jax.random.key(0), INPUT_IDS)["params"]) == flat_shapes(params)

    with torch.no_grad():
        expected = oracle(input_ids=torch.from_numpy(INPUT_IDS).long(), output_hidden_states=True)
    output = jax.jit(model.apply)({"params": params}, INPUT_IDS)
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) < 1e-4
    assert len(output.hidden_states) == len(expected.hidden_states) == 3
    for actual_state, expected_state in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(actual_state, expected_state) < 1e-4
    if projection:
        assert relative_error(output.text_embeds, expected.text_embeds) < 1e-4
    else:
        assert relative_error(output.pooled, expected.pooler_output) < 1e-4
        assert output.text_embeds is None


def test_inputs_embeds_replace_the_tokens():
    oracle = torch_model(transformers.CLIPTextModel, transformers.CLIPTextConfig(**TEXT))
    model = CLIPTextModel.from_config(TEXT)
    variables = {"params": text_params(oracle)}
    embeds = model.apply(variables, INPUT_IDS, method="embed_tokens")
    offset = np.random.default_rng(0).normal(size=embeds.shape).astype(np.float32)
    # The oracle has no such argument: shift what its embedding layer returns instead.
    oracle.embeddings.token_embedding.register_forward_hook(
        lambda module, inputs, output: output + torch.from_numpy(offset)
    )
    with torch.no_grad():
        expected = oracle(input_ids=torch.from_numpy(INPUT_IDS).long())
    output = jax.jit(model.apply)(variables, INPUT_IDS, embeds + offset)
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) < 1e-4
    assert relative_error(output.pooled, expected.pooler_output) < 1e-4


def test_text_attention_is_causal():
    model = CLIPTextModel.from_config(TEXT)
    oracle = torch_model(transformers.CLIPTextModel, transformers.CLIPTextConfig(**TEXT))
    variables = {"params": text_params(oracle)}
    changed = INPUT_IDS.copy()
    changed[:, 5] = 11
    encode = jax.jit(model.apply)
    before, after = (encode(variables, ids).last_hidden_state for ids in (INPUT_IDS, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_vision_parity_with_transformers(hidden_act):
    config = transformers.CLIPVisionConfig(**VISION | {"hidden_act": hidden_act})
    oracle = torch_model(transformers.CLIPVisionModelWithProjection, config)
    model = CLIPVisionModelWithProjection.from_config(config.to_dict())
    params = params_from_torch(oracle.state_dict())
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    assert flat_shapes(jax.eval_shape(model.init, jax.random.key(0), images)["params"]) == flat_shapes(params)

    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = oracle(pixel_values=pixels)
        expected_pooled = oracle.vision_model(pixel_values=pixels).pooler_output
    output = jax.jit(model.apply)({"params": params}, images)
    assert relative_error(output.image_embeds, expected.image_embeds) < 1e-4
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) < 1e-4
    assert relative_error(output.pooled, expected_pooled) < 1e-4


@pytest.mark.slow
def test_bfloat16_output_is_finite_and_close():
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    text = torch_model(transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(**TEXT))
    vision = torch_model(transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**VISION))
    for oracle, model_class, config, inputs in (
        (text, CLIPTextModelWithProjection, TEXT, INPUT_IDS),
        (vision, CLIPVisionModelWithProjection, VISION, images),
    ):
        variables = {"params": params_from_torch(oracle.state_dict())}
        exact = jax.jit(model_class.from_config(config).apply)(variables, inputs)
        rounded = jax.jit(model_class.from_config(config, dtype=jnp.bfloat16).apply)(variables, inputs)
        for actual, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
            assert actual.dtype == jnp.bfloat16
            assert relative_error(actual, expected) < 0.1


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float16])
def test_float32_activations_with_weights_stored_in_less(param_dtype):
    oracle = torch_model(transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(**TEXT))
    params = params_from_torch(oracle.state_dict())
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype), params)
    encode = jax.jit(CLIPTextModelWithProjection.from_config(TEXT).apply)
    exact, rounded = (encode({"params": weights}, INPUT_IDS) for weights in (params, stored))
    for actual, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert actual.dtype == jnp.float32
        assert relative_error(actual, expected) < 0.05


@pytest.mark.parametrize(
    ("model_class", "config", "named"),
    [
        (CLIPTextModel, TEXT | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (CLIPTextModel, TEXT | {"model_type": "t5"}, "model_type = 't5'"),
        (CLIPTextModel, TEXT | {"eos_token_id": [2, 49]}, "eos_token_id"),
        (CLIPTextModel, TEXT | {"num_attention_heads": 3}, "num_attention_heads = 3"),
        (CLIPVisionModelWithProjection, VISION | {"model_type": "clip_text_model"}, "clip_text_model"),
        (CLIPVisionModelWithProjection, VISION | {"patch_size": [4, 2]}, "patch_size"),
    ],
)
def test_unsupported_setting_is_named(model_class, config, named):
    with pytest.raises(InputError, match=named):
        model_class.from_config(config)


def test_inputs_of_a_wrong_size_are_refused():
    with pytest.raises(InputError, match="max_position_embeddings=9"):
        jax.eval_shape(CLIPTextModel.from_config(TEXT).init, jax.random.key(0), np.zeros((1, 10), np.int32))
    with pytest.raises(InputError, match="resize"):
        model = CLIPVisionModelWithProjection.from_config(VISION)
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
