"""A checkpoint as one pytree: its leaves are the weights, and equal architectures share compiled programs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import toy
from utilgen_jax.errors import InputError
from utilgen_jax.generator.loading import load_stable_diffusion, read_architecture
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.models.lora import init_lora


def test_the_leaves_are_the_weights(loaded):
    sd = loaded("sd15")
    leaves, structure = jax.tree.flatten(sd)
    assert all(ours is weights for ours, weights in zip(leaves, jax.tree.leaves(sd.params), strict=True))
    again = jax.tree.unflatten(structure, leaves)
    assert again.architecture is sd.architecture and again.tokenizer is sd.tokenizer
    doubled = jax.tree.map(lambda leaf: 2 * leaf, sd)
    np.testing.assert_array_equal(
        doubled.params["unet"]["conv_in"]["kernel"], 2 * sd.params["unet"]["conv_in"]["kernel"]
    )


def test_equal_architectures_share_their_programs(checkpoint, tmp_path):
    folder = checkpoint("sd15")
    first, other = read_architecture(folder), read_architecture(folder, jnp.bfloat16)
    traces = []

    @jax.jit
    def program(sd, x):
        traces.append(sd)
        return x * sd.vae.scaling_factor

    # Another object of the same content, with a tokenizer of its own, as after a second loading.
    second = dataclasses.replace(first, tokenizer=object())
    assert second is not first and second == first and hash(second) == hash(first)
    for architecture in (first, second, other):
        program(StableDiffusion(architecture, {}), 1.0)
    assert len(traces) == 2
    assert first != other and first != "sd15"


def test_another_schedule_is_another_architecture(copy_of):
    folder = copy_of("sd15")
    first = read_architecture(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.013}))
    assert read_architecture(folder) != first


def test_variables_hold_the_weights_and_a_lora_of_the_component():
    sd = toy.make_toy()
    assert sd.variables("unet") == {"params": sd.params["unet"]}
    lora = init_lora(sd.params["unet"], jax.random.key(0), rank=1)
    assert sd.variables("vae", {"unet": lora}) == {"params": sd.params["vae"]}
    variables = sd.variables("unet", {"unet": lora})
    assert variables["lora"] is lora.factors and variables["lora_scale"] is lora.scales


def test_components_are_replaced_in_a_copy():
    sd = toy.make_toy()
    other = sd.with_params(vae={"kernel": 0})
    assert other.params["vae"] == {"kernel": 0} and other.params["unet"] is sd.params["unet"]
    assert sd.params["vae"]["kernel"].shape == (2, 3) and other.architecture is sd.architecture


def test_image_sizes_are_whole_latents(loaded):
    architecture = loaded("sd15").architecture
    assert architecture.latent_shape((16, 24)) == (8, 12, 4)
    for size in (2, 16, 18):
        architecture.check_image_size(size)
    with pytest.raises(InputError, match="config.generator.image_size=17: this checkpoint makes multiples of 2"):
        architecture.check_image_size(17)


def test_components_are_named_by_their_modules(checkpoint):
    assert set(load_stable_diffusion(checkpoint("unclip")).architecture.modules) == {
        *("unet", "vae", "text_encoder", "image_encoder")
    }
    assert "image_encoder" not in read_architecture(checkpoint("sd15")).modules
