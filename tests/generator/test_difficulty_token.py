"""The difficulty encoder as a component on disk, and its token in the UNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from utilgen_jax.errors import InputError
from utilgen_jax.generator.difficulty_token import (
    append_difficulty,
    load_difficulty_encoder,
    save_difficulty_encoder,
)
from utilgen_jax.models.difficulty import DifficultyEncoder


@pytest.fixture
def encoder():
    return DifficultyEncoder(num_classes=3, cross_attention_dim=32, hidden_size=8)


@pytest.fixture
def params(encoder):
    return encoder.init(jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1))["params"]


def test_saved_and_loaded_it_is_the_same(tmp_path, encoder, params):
    save_difficulty_encoder(tmp_path, encoder, params)
    again, loaded = load_difficulty_encoder(tmp_path)
    assert again == encoder
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    _, halved = load_difficulty_encoder(tmp_path, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(halved)} == {jnp.dtype(jnp.bfloat16)}
    stored = load_file(tmp_path / "difficulty_encoder" / "diffusion_pytorch_model.safetensors")
    assert stored["linear_1.weight"].shape == (8, 4)  # torch's layout: 3 classes and the difficulty in, 8 out


def test_weights_of_another_size_are_refused(tmp_path, encoder, params):
    save_difficulty_encoder(tmp_path, encoder, params)
    file = tmp_path / "difficulty_encoder" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"linear_1.weight": np.zeros((8, 11), np.float32)}, file)
    with pytest.raises(InputError, match=r"linear_1\.weight has shape \(8, 11\), the model \(8, 4\)"):
        load_difficulty_encoder(tmp_path)
    with pytest.raises(InputError, match="config.json: no such file"):
        load_difficulty_encoder(tmp_path / "elsewhere")


@pytest.mark.slow
def test_the_token_reaches_the_unet(loaded, encoder, params):
    sd = loaded("sd15")
    embeds = jax.random.normal(jax.random.key(1), (2, 77, 32))
    latents = jax.random.normal(jax.random.key(2), (2, 8, 8, 4))

    @jax.jit
    def predict(difficulty):
        states = append_difficulty(encoder, params, embeds, jnp.array([0, 2]), difficulty)
        return states, sd.unet.apply(sd.variables("unet"), latents, jnp.array([500, 500]), states)

    states, easy = predict(jnp.array([0.1, 0.5]))
    assert states.shape == (2, 78, 32)
    np.testing.assert_array_equal(states[:, :77], embeds)
    _, hard = predict(jnp.array([0.9, 0.5]))
    assert np.abs(easy[0] - hard[0]).max() > 1e-6
    np.testing.assert_array_equal(easy[1], hard[1])
