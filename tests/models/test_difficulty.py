"""The difficulty encoder, against the same perceptron in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.torch_parity import params_from_torch, relative_error
from utilgen_jax.errors import InputError
from utilgen_jax.models.difficulty import DifficultyEncoder

CONFIG = {"num_classes": 5, "cross_attention_dim": 12, "hidden_size": 16}


def test_it_is_torchs_perceptron_on_label_and_difficulty():
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {"linear_1": torch.nn.Linear(6, 16), "linear_2": torch.nn.Linear(16, 16), "linear_3": torch.nn.Linear(16, 12)}
    )
    labels, difficulty = np.array([4, 0, 2]), np.array([0.1, 0.5, 1.0], np.float32)
    features = torch.cat(
        [torch.nn.functional.one_hot(torch.from_numpy(labels), 5), torch.from_numpy(difficulty)[:, None]], dim=1
    )
    hidden = torch.nn.functional.silu(layers["linear_1"](features))
    expected = layers["linear_3"](torch.nn.functional.silu(layers["linear_2"](hidden)))

    encoder = DifficultyEncoder.from_config(CONFIG)
    token = encoder.apply({"params": params_from_torch(layers.state_dict())}, labels, difficulty)

    assert token.shape == (3, 1, 12) and token.dtype == jnp.float32
    assert relative_error(token[:, 0], expected.detach().numpy()) < 1e-5


@pytest.mark.slow
def test_the_token_follows_the_difficulty_smoothly():
    encoder = DifficultyEncoder.from_config(CONFIG, dtype=jnp.bfloat16)
    labels, difficulty = jnp.array([1]), jnp.array([0.5])
    params = encoder.init(jax.random.key(0), labels, difficulty)
    assert encoder.apply(params, labels, difficulty).dtype == jnp.bfloat16
    slope = jax.jit(jax.grad(lambda scores: encoder.apply(params, labels, scores).astype(jnp.float32).sum()))(
        difficulty
    )
    assert np.isfinite(slope).all() and slope[0] != 0


def test_config_round_trip_and_errors():
    encoder = DifficultyEncoder.from_config(CONFIG)
    assert DifficultyEncoder.from_config(encoder.to_config()) == encoder
    with pytest.raises(InputError, match="num_classes = 0, hidden_size = None: must be positive"):
        DifficultyEncoder.from_config({"num_classes": 0, "cross_attention_dim": 12})
