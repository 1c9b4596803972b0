"""Diffusion-DPO: pairs by utility, the loss on them, and rounds of training; `tests/diffusion` tests the formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cut_off import assert_goes_on
from tests.generator import toy
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, AdapterConfig, init_adapter
from utilgen_jax.generator.finetune import dpo
from utilgen_jax.generator.finetune.config import DpoConfig
from utilgen_jax.generator.finetune.dpo import DpoBatch, DpoPairs, dpo_losses, preference_pairs, train_dpo
from utilgen_jax.runtime.training_loop import TrainingLoop

CONFIG = DpoConfig(steps=40, batch_size=8, learning_rate=0.02, rank=2, beta=50.0, fraction=0.25)


def make_pairs(number=24):
    sample_inputs = toy.toy_requests(number)
    return DpoPairs(
        latents=toy.normal(3, *sample_inputs.latents.shape),
        labels=sample_inputs.labels,
        prompt_embeds=sample_inputs.condition.prompt_embeds[: toy.CLASSES],
        prompts=sample_inputs.labels,
        winners=jnp.arange(number // 2),
        losers=jnp.arange(number // 2, number),
    )


@pytest.mark.slow
def test_winners_come_to_be_preferred_and_a_round_starts_where_the_last_ended():
    sd = toy.make_toy()
    seen = []

    def on_step(step, loss, pair_accuracy):
        seen.append((step, float(loss), float(pair_accuracy)))

    first = train_dpo(sd, Adapter(), make_pairs(), CONFIG, jax.random.key(0), TrainingLoop(on_step))
    steps, losses, accuracies = zip(*seen, strict=True)
    assert steps == tuple(range(1, 41))
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-4)
    assert np.mean(losses[-10:]) < np.log(2) - 0.05 and np.mean(accuracies[-10:]) > 0.6

    seen.clear()
    second = train_dpo(sd, first, make_pairs(), CONFIG, jax.random.key(1), TrainingLoop(on_step))
    # The reference is where the round began.
    np.testing.assert_allclose(seen[0][1], np.log(2), rtol=1e-4)
    # It was not given away to the training step.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, second)
    assert all(value > 1e-4 for value in jax.tree.leaves(moved))


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
    sd = toy.make_toy()
    sample_inputs = toy.toy_requests(8)
    latents = toy.normal(3, *sample_inputs.latents.shape)
    winners, losers = np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])
    reference = init_adapter(
        sd.params, sample_inputs, AdapterConfig(lora_rank=2, num_prompts=toy.CLASSES), jax.random.key(0)
    )
    optimizer = optax.adam(0.02)

    def loss(adapter, key, losers=losers):
        batch = DpoBatch(sample_inputs, latents, winners, losers)
        return jnp.mean(dpo_losses(sd, adapter, reference, batch, key, beta=20.0))

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


@pytest.mark.slow
def test_micro_batches_change_memory_and_not_the_step(monkeypatch):
    """Of a loss without noise, which each part draws for itself."""

    def losses(sd, adapter, reference, batch, key, beta):
        size = sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(adapter.unet_lora))
        return size * batch.latents[batch.winners].mean((1, 2, 3)) + batch.latents[batch.losers].std((1, 2, 3))

    monkeypatch.setattr(dpo, "dpo_losses", losses)
    sd, found = toy.make_toy(), []
    for most in (0, 2):
        config = dataclasses.replace(CONFIG, steps=3, micro_batch_size=most, beta=7.0)
        told = []
        adapter = train_dpo(
            sd,
            Adapter(),
            make_pairs(),
            config,
            jax.random.key(0),
            TrainingLoop(lambda step, loss, pair_accuracy, told=told: told.append((loss, pair_accuracy))),
        )
        found.append((adapter, told))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_a_training_that_was_cut_off_goes_on_with_the_same_bits(tmp_path):
    sd, config = toy.make_toy(), dataclasses.replace(CONFIG, steps=4)
    assert_goes_on(
        lambda loop: train_dpo(sd, Adapter(), make_pairs(), config, jax.random.key(0), loop), tmp_path, cut_after=3
    )
