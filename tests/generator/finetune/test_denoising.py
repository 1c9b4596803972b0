"""The denoising step against torch's: peft's LoRA in diffusers' UNet and transformers' text encoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from tests.torch_parity import relative_error
from utilgen_jax import checkpoints
from utilgen_jax.checkpoints.lora_files import save_lora
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, adapter_loras
from utilgen_jax.generator.conditioning import encode_tokens
from utilgen_jax.generator.finetune.denoising import DenoisingSet, adapter_loss, init_train_state, make_train_step
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.models.lora import init_lora, layer_shapes
from utilgen_jax.runtime import sharding

# As little as there is to compile: one resolution, one transformer, one text layer.
UNET = {
    "sample_size": 4,
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
TARGETS = {"unet": ("attention", r"conv1$"), "text_encoder": ("attention",)}
PROMPTS = ["the digit 7", "a photo of it"]
LABELS = np.array([0, 1, 0, 0, 1, 1, 0, 1])
SNR_GAMMA = 5.0
B1 = 0.9
OPTIMIZER = optax.adam(1e-2, b1=B1)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def pipeline(checkpoint, tmp_path_factory):
    """torch's, with its folders in `components` for ours."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"), unet=UNet2DConditionModel(**UNET))
    del pipeline.text_encoder.encoder.layers[1]
    pipeline.text_encoder.config.num_hidden_layers = 1
    components = {name: folder / name for name in ("unet", "text_encoder")}
    for name, path in components.items():
        getattr(pipeline, name).save_pretrained(path)
    return pipeline, components


@pytest.fixture(scope="module")
def small(checkpoint, pipeline):
    """Its `StableDiffusion`."""
    return load_stable_diffusion(checkpoint("sd15"), components=pipeline[1])


@pytest.fixture(scope="module")
def adapter(small):
    """With fresh LoRA on both models, on the host: a step donates what it is given."""
    factors = {
        f"{name}_lora": init_lora(small.params[name], jax.random.key(0), rank=2, targets=targets).factors
        for name, targets in TARGETS.items()
    }
    return jax.tree.map(np.array, Adapter(**factors))


@pytest.fixture(scope="module")
def step():
    return make_train_step(adapter_loss, OPTIMIZER, SNR_GAMMA)


def initial_state(adapter):
    return init_train_state(jax.tree.map(jnp.array, adapter), OPTIMIZER)


def example_batch(sd, size=8):
    """The prompts' token ids, and images whose labels take them in another order."""
    latents = 0.5 * np.random.default_rng(0).standard_normal((size, 4, 4, 4), np.float32)
    input_ids = checkpoints.tokenize(sd.tokenizer, PROMPTS)
    return jnp.asarray(input_ids), DenoisingSet(jnp.asarray(latents), jnp.asarray(LABELS[:size]))


@pytest.mark.slow
def test_training_lowers_the_loss_and_changes_the_factors_alone(small, adapter, step):
    before = jax.tree.map(np.array, small)
    state = initial_state(adapter)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(adapter)])
    prompts, batch = example_batch(small)
    losses = []
    for number in range(40):
        if number == 30:  # the first noises and timesteps once more
            state = state.replace(step=jnp.zeros((), jnp.int32))
        state, metrics = step(state, small, prompts, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and metrics["grad_norm"] > 0
    assert np.mean(losses[30:]) < 0.9 * np.mean(losses[:10])
    assert state.step == 10 and step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, small, before)
    changes = jax.tree.map(lambda now, then: float(np.abs(now - then).max()), state.trained, adapter)
    assert min(jax.tree.leaves(changes)) > 0


@pytest.mark.slow
def test_gradient_is_that_of_torch(small, pipeline, adapter, step, tmp_path):
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), adapter)
    save_lora(tmp_path, adapter_loras(trained))
    prompts, batch = example_batch(small)
    state, metrics = step(initial_state(trained), small, prompts, batch, KEY)
    # Adam's first moment after one step.
    moments = jax.tree.map(lambda mu: mu / (1 - B1), state.optimizer_state[0].mu)
    gradient = {"unet": moments.unet_lora, "text_encoder": moments.text_encoder_lora}

    step_key = jax.random.fold_in(KEY, 0)
    timesteps = np.array(jax.random.randint(jax.random.fold_in(step_key, 0), (len(LABELS),), 0, 1000))
    noise = np.array(jax.random.normal(jax.random.fold_in(step_key, 1), batch.latents.shape))
    latents, noise = (torch.tensor(np.array(array)).permute(0, 3, 1, 2) for array in (batch.latents, noise))
    timesteps = torch.tensor(timesteps)
    oracle, _ = pipeline
    oracle.load_lora_weights(tmp_path)
    parameters = {
        (name, layer.partition(".lora_")[0], "down" if "lora_A" in layer else "up"): parameter.requires_grad_()
        for name in TARGETS
        for layer, parameter in getattr(oracle, name).named_parameters()
        if ".lora_" in layer
    }
    schedule = DDPMScheduler.from_config(oracle.scheduler.config)
    states = oracle.text_encoder(torch.tensor(np.array(prompts[batch.labels]))).last_hidden_state
    prediction = oracle.unet(schedule.add_noise(latents, noise, timesteps), timesteps, states).sample
    # As in diffusers' examples/text_to_image/train_text_to_image_lora.py.
    snr = compute_snr(schedule, timesteps)
    snr_weights = torch.minimum(snr, torch.tensor(SNR_GAMMA)) / snr
    loss = (torch.nn.functional.mse_loss(prediction, noise, reduction="none").mean((1, 2, 3)) * snr_weights).mean()
    expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert relative_error(metrics["loss"], loss.item()) < 1e-5
    largest = max(float(leaf.abs().max()) for leaf in expected.values())
    compared = 0
    for name, of_model in gradient.items():
        for (*scope, factor), ours in flatten_dict(of_model).items():
            theirs = expected[name, ".".join(scope).removeprefix("text_model."), factor].numpy()
            theirs = theirs.T if theirs.ndim == 2 else theirs.transpose(2, 3, 1, 0)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest)
            compared += 1
    assert compared == len(expected)


@pytest.mark.slow
def test_eight_devices_train_as_one_does(small, adapter, step):
    prompts, batch = example_batch(small)
    one, alone = step(initial_state(adapter), small, prompts, batch, KEY)
    mesh = sharding.make_mesh(data=4, fsdp=2)

    def split_last_axis(shape, mesh):
        return PartitionSpec(*[None] * (len(shape) - 1), "fsdp")

    with jax.set_mesh(mesh):
        state = sharding.shard_params(initial_state(adapter), mesh, ((r"(down|up)$", split_last_axis),))
        weights = sharding.shard_params(small.params, mesh, ((r"^(unet|text_encoder)/.*kernel$", split_last_axis),))
        assert not weights["unet"]["conv_in"]["kernel"].is_fully_replicated
        batch = sharding.shard_batch(batch, mesh)
        eight, together = step(state, small.replace(params=weights), sharding.replicate(prompts), batch, KEY)
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.optimizer_state[0].mu, eight.optimizer_state[0].mu
    )


def test_no_gradient_of_a_frozen_kernel_is_computed(small, adapter):
    # Seven images: no kernel has a side of 7, so no activation has the shape of one.
    prompts, batch = example_batch(small, size=7)
    kernels = {tuple(sorted(shape)) for name in TARGETS for _, shape in layer_shapes(small.params[name]).values()}

    def products(argument):
        """The shapes of all matrix products and convolutions in the gradient to the weights (0) or the factors (1)."""
        gradient = jax.grad(lambda *trees: adapter_loss(*trees, prompts, batch, KEY).mean(), argument)
        program = str(jax.make_jaxpr(gradient)(small, adapter))
        shapes = re.findall(r"f32\[([\d,]+)\] = (?:dot_general|conv_general_dilated)", program)
        return {tuple(sorted(int(side) for side in shape.split(","))) for shape in shapes}

    assert kernels <= products(0)
    assert kernels.isdisjoint(products(1))


@pytest.mark.slow
def test_activations_are_of_the_dtype_of_the_generator_factors_and_loss_float32(checkpoint, pipeline, adapter):
    sd = load_stable_diffusion(checkpoint("sd15"), dtype=jnp.bfloat16, components=pipeline[1])
    state = initial_state(adapter)
    step = make_train_step(adapter_loss, OPTIMIZER)
    new_state, metrics = jax.eval_shape(step, state, sd, *example_batch(sd), KEY)
    assert jax.tree.map(lambda leaf: leaf.dtype, new_state) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state.trained)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


def test_token_ids_and_text_states_of_the_same_prompts_are_the_same(small, adapter):
    input_ids, batch = example_batch(small)
    unet_alone = adapter.replace(text_encoder_lora=None)
    encoded = adapter_loss(small, unet_alone, encode_tokens(small, input_ids), batch, KEY)
    np.testing.assert_allclose(adapter_loss(small, unet_alone, input_ids, batch, KEY), encoded, rtol=1e-5)


def test_unclip_learns_from_class_labels(loaded):
    sd = loaded("unclip")
    embeds = jnp.asarray(np.random.default_rng(0).standard_normal((1, 77, 32)), jnp.float32)
    batch = DenoisingSet(jnp.ones((2, 8, 8, 4)), jnp.zeros(2, int))
    labels = jnp.asarray(np.random.default_rng(1).standard_normal((2, 32)), jnp.float32)
    without, none, some = (
        adapter_loss(sd, Adapter(), embeds, batch.replace(class_labels=each), KEY)
        for each in (None, 0 * labels, labels)
    )
    assert some.shape == (2,) and some.dtype == jnp.float32
    np.testing.assert_array_equal(without, none)
    assert np.abs(some - none).min() > 1e-6


def test_text_states_do_not_suit_a_lora_on_the_text_encoder(small, adapter, step):
    _, batch = example_batch(small)
    with pytest.raises(InputError, match="needs prompts as token ids"):
        step(initial_state(adapter), small, jnp.zeros((2, 77, 32)), batch, KEY)
