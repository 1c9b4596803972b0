"""AutoencoderKL against diffusers' torch module, and the posterior's closed forms."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tests.torch_parity import flat_shapes, params_from_torch, relative_error
from utilgen_jax.checkpoints.torch_names import RENAMED_ATTENTION
from utilgen_jax.errors import InputError
from utilgen_jax.models import autoencoder
from utilgen_jax.models.autoencoder import AutoencoderKL

TINY = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
VARIANTS = {
    "plain": {},
    "two layers a block": {"layers_per_block": 2},
    "one block": {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [8],
    },
    "no quant_conv": {"use_quant_conv": False},
    "no post_quant_conv": {"use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "grey": {"in_channels": 1, "out_channels": 1, "latent_channels": 3, "act_fn": "swish"},
}


def torch_autoencoder(config):
    """A torch module in which no parameter keeps a trivial value (biases 0, norms 1)."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(**config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def nchw(array):
    """NHWC numpy -> NCHW torch."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def nhwc(tensor):
    """NCHW torch -> NHWC numpy."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, images, latents):
    """Returns (moments of the images, images of the latents), compiled at once."""
    variables = {"params": params}
    return model.apply(variables, images, method="encode"), model.apply(variables, latents, method="decode")


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_parity_with_diffusers(settings):
    config = TINY | settings
    oracle = torch_autoencoder(config)
    model = AutoencoderKL.from_config(dict(oracle.config))
    params = params_from_torch(oracle.state_dict())
    generator = np.random.default_rng(0)
    # Not square, so that exchanged axes show.
    images = generator.uniform(-1, 1, (2, 16, 12, model.in_channels)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert flat_shapes(shapes) == flat_shapes(params)

    with torch.no_grad():
        expected_moments = nhwc(oracle.encode(nchw(images)).latent_dist.parameters)
        latents = generator.normal(size=(*expected_moments.shape[:3], model.latent_channels)).astype(np.float32)
        expected_images = nhwc(oracle.decode(nchw(latents)).sample)
    moments, decoded = run(model, params, images, latents)
    assert relative_error(moments, expected_moments) < 1e-4
    assert relative_error(decoded, expected_images) < 1e-4


def test_call_reconstructs_through_the_mean():
    oracle = torch_autoencoder(TINY)
    images = np.random.default_rng(4).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        expected = nhwc(oracle(nchw(images)).sample)
    actual = jax.jit(AutoencoderKL.from_config(TINY).apply)({"params": params_from_torch(oracle.state_dict())}, images)
    assert relative_error(actual, expected) < 1e-4


def test_downsampling_of_odd_sizes_is_as_in_torch():
    oracle = torch_autoencoder(TINY)
    params = params_from_torch(oracle.state_dict())
    images = np.random.default_rng(1).uniform(-1, 1, (1, 9, 15, 3)).astype(np.float32)
    with torch.no_grad():
        expected = nhwc(oracle.encode(nchw(images)).latent_dist.parameters)
    encode = jax.jit(functools.partial(AutoencoderKL.from_config(TINY).apply, method="encode"))
    moments = encode({"params": params}, images)
    assert relative_error(moments, expected) < 1e-4


@pytest.mark.slow
def test_gradient_checkpointing_of_the_decoder_keeps_less_for_the_same_gradient():
    params = params_from_torch(torch_autoencoder(TINY).state_dict())
    latents = np.random.default_rng(6).normal(size=(1, 8, 8, 4)).astype(np.float32)
    kept, gradients = {}, {}
    for name in ("none", "layers", "blocks"):
        model = AutoencoderKL.from_config(TINY, gradient_checkpointing=name)

        def loss(latents, model=model):
            return jnp.sum(model.apply({"params": params}, latents, method="decode") ** 2)

        pullback = jax.eval_shape(lambda latents, loss=loss: jax.vjp(loss, latents)[1], latents)
        kept[name] = sum(leaf.size for leaf in jax.tree.leaves(pullback))
        gradients[name] = jax.jit(jax.grad(loss))(latents)
        assert relative_error(gradients[name], gradients["none"]) < 1e-4
    assert kept["none"] > kept["layers"] > kept["blocks"]


@pytest.mark.slow
def test_bfloat16_output_is_finite_and_close():
    params = params_from_torch(torch_autoencoder(TINY).state_dict())
    generator = np.random.default_rng(2)
    images = generator.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    latents = generator.normal(size=(2, 8, 8, 4)).astype(np.float32)
    exact = run(AutoencoderKL.from_config(TINY), params, images, latents)
    rounded = run(AutoencoderKL.from_config(TINY, dtype=jnp.bfloat16), params, images, latents)
    for actual, expected in zip(rounded, exact, strict=True):
        assert actual.dtype == jnp.bfloat16
        assert relative_error(actual, expected) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("param_dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float16, 0.005)])
def test_float32_activations_with_weights_stored_in_less(param_dtype, tolerance):
    params = params_from_torch(torch_autoencoder(TINY).state_dict())
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype), params)
    generator = np.random.default_rng(7)
    images = generator.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    latents = generator.normal(size=(2, 8, 8, 4)).astype(np.float32)
    model = AutoencoderKL.from_config(TINY)
    exact, rounded = (run(model, weights, images, latents) for weights in (params, stored))
    for actual, expected in zip(rounded, exact, strict=True):
        assert actual.dtype == jnp.float32
        assert relative_error(actual, expected) < tolerance


def test_attention_is_renamed_as_in_diffusers():
    oracle = torch_autoencoder(TINY)
    current = oracle.state_dict()
    old_name = {new: old for old, new in RENAMED_ATTENTION.items()}
    old = {}
    for name, tensor in current.items():
        for new in old_name:
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old_name[new]}.")
        old[name] = tensor
    assert len(old.keys() - current.keys()) == 2 * 4 * 2  # encoder and decoder, four layers, weight and bias
    assert oracle._fix_state_dict_keys_on_load(old).keys() == current.keys()


def test_posterior_functions_equal_diffusers():
    moments = np.random.default_rng(3).normal(size=(2, 4, 3, 8)).astype(np.float32)
    moments[0, 0, 0, 4:] = [-100.0, 100.0, -30.0, 20.0]  # beyond and at the clipping
    expected = DiagonalGaussianDistribution(nchw(moments))
    np.testing.assert_array_equal(autoencoder.mode(moments), nhwc(expected.mode()))
    np.testing.assert_allclose(autoencoder.kl_divergence(moments), expected.kl().numpy(), rtol=1e-5)
    noise = jax.random.normal(jax.random.key(5), (2, 4, 3, 4))
    drawn = autoencoder.sample_posterior(moments, jax.random.key(5))
    np.testing.assert_allclose(drawn, nhwc(expected.mean) + nhwc(expected.std) * noise, rtol=1e-5)


def test_posterior_draws_have_the_stated_mean_and_variance():
    moments = jnp.broadcast_to(jnp.array([2.0, jnp.log(9.0)]), (1, 300, 300, 2))
    drawn = autoencoder.sample_posterior(moments, jax.random.key(0))
    assert drawn.mean() == pytest.approx(2.0, abs=0.05)
    assert drawn.std() == pytest.approx(3.0, abs=0.05)


def test_standard_normal_posterior_has_no_divergence():
    assert autoencoder.kl_divergence(jnp.zeros((1, 2, 2, 6))) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries"),
        ({"shift_factor": 0.1}, "shift_factor = 0.1"),
        ({"latents_mean": [0.0, 0.0, 0.0, 0.0]}, "latents_mean"),
        ({"norm_num_groups": 3}, "norm_num_groups = 3"),
    ],
)
def test_unsupported_setting_is_named(settings, named):
    with pytest.raises(InputError, match=named):
        AutoencoderKL.from_config(TINY | settings)


def test_config_fields_are_kept_and_harmless_keys_ignored():
    config = TINY | {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "force_upcast": False, "shift_factor": None}
    model = AutoencoderKL.from_config(config)
    assert (model.scaling_factor, model.block_out_channels) == (0.5, (8, 16))
    hash(model)  # a static argument of jit
