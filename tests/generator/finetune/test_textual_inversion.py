"""Textual inversion: a word for each class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax import checkpoints
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.finetune.config import DenoisingConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet, adapter_loss
from utilgen_jax.generator.finetune.textual_inversion import class_tokens, initial_embeds, train_textual_inversion
from utilgen_jax.generator.tokens import add_tokens
from utilgen_jax.runtime.training_loop import TrainingLoop

NAMES = ["a", "bb"]


def test_words_start_at_the_mean_of_the_names_tokens(loaded):
    sd = loaded("sd15")
    embeds = np.asarray(initial_embeds(sd, NAMES))
    table = np.asarray(sd.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"])
    for name, embed in zip(NAMES, embeds, strict=True):
        ids = sd.tokenizer(name, add_special_tokens=False).input_ids
        np.testing.assert_allclose(embed, table[ids].mean(0), rtol=1e-5)


@pytest.mark.slow
def test_learnt_words_lower_the_loss_and_nothing_else_moves(loaded):
    sd = loaded("sd15")
    tokens = class_tokens(2)
    prompts = [f"a photo of {token}" for token in tokens]
    initial = initial_embeds(sd, NAMES)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(np.repeat(rng.normal(size=(2, 4, 4, 4)), 3, axis=0), jnp.float32)
    images = DenoisingSet(latents, jnp.repeat(jnp.arange(2), 3))
    before = jax.tree.map(np.array, sd.params["text_encoder"])
    config = DenoisingConfig(steps=60, batch_size=8, prior_fraction=0.0, learning_rate=0.05, snr_gamma=0.0)
    learnt = train_textual_inversion(
        sd,
        prompts,
        initial,
        images,
        images,
        config,
        jax.random.key(0),
        TrainingLoop(),
    )
    assert learnt.shape == initial.shape and (np.abs(learnt - initial).max(axis=1) > 0.01).all()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, sd.params["text_encoder"]))

    new = add_tokens(sd, tokens, learnt)
    ids = checkpoints.tokenize(new.tokenizer, prompts)
    assert (ids == len(sd.tokenizer)).sum(1).tolist() == [1, 0]
    states = encode_prompts(new, prompts)
    assert np.abs(states[0] - states[1]).max() > 1e-3

    # On the same timesteps and noise for both.
    start = encode_prompts(sd, [f"a photo of {name}" for name in NAMES])
    many = images.take(np.tile(np.arange(6), 20))
    first, last = (adapter_loss(sd, Adapter(), each, many, jax.random.key(9)).mean() for each in (start, states))
    assert last < first
