"""Pairs by utility, and what the loss on them does to the adapter; its formula is tested in `tests/diffusion`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from utilgen_jax.generator.finetune.dpo_loss import dpo_losses, preference_pairs

from tests.generator import toy
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import init_adapter


def test_pairs_are_the_best_and_the_worst_of_a_class():
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 2, 0, 0, 0, 0])
    utilities = np.array([5.0, -1.0, 7.0, 2.0, 1.0, 3.0, 0.0, 9.0, 2.0, 4.0, 6.0, 8.0])
    winners, losers = preference_pairs(utilities, labels)  # 8 of class 0, 3 of class 1, one of class 2
    assert winners.tolist() == [11, 2, 3] and losers.tolist() == [4, 8, 1]
    winners, losers = preference_pairs(utilities, labels, fraction=0.5)
    assert len(winners) == 5 and not set(winners) & set(losers)
    assert (labels[winners] == labels[losers]).all() and (utilities[winners] > utilities[losers]).all()


def test_pairs_that_cannot_be_made_are_refused():
    with pytest.raises(InputError, match="no class has two images"):
        preference_pairs(np.zeros(3), np.arange(3))
    with pytest.raises(InputError, match=r"fraction=0\.6 must be above 0 and at most 0\.5"):
        preference_pairs(np.zeros(3), np.zeros(3), 0.6)


@pytest.mark.slow
def test_the_loss_starts_at_log_2_and_falls_as_winners_are_denoised_better():
    generator, params = toy.make_toy()
    sample_inputs = toy.toy_requests(8)
    latents = toy.normal(3, *sample_inputs.latents.shape)
    winners, losers = np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])
    reference = init_adapter(params, sample_inputs, jax.random.key(0), lora_rank=2, num_prompts=toy.CLASSES)
    optimizer = optax.adam(0.02)

    def loss(adapter, key, losers=losers):
        return jnp.mean(
            dpo_losses(generator, params, adapter, reference, latents, sample_inputs, winners, losers, key, beta=20.0)
        )

    @jax.jit
    def update(adapter, state, key):
        value, gradient = jax.value_and_grad(loss)(adapter, key)
        updates, state = optimizer.update(gradient, state, adapter)
        return optax.apply_updates(adapter, updates), state, value, gradient

    adapter, state, losses = reference, optimizer.init(reference), []
    for step in range(40):
        adapter, state, value, gradient = update(adapter, state, jax.random.key(step % 20))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        losses.append(float(value))
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)
    assert np.mean(losses[20:]) < 0.65
    # Winner and loser have one noise and one timestep: the same image against itself is no preference.
    same = jax.jit(loss)(adapter, jax.random.key(0), losers=winners)
    np.testing.assert_allclose(same, np.log(2), rtol=1e-5)
