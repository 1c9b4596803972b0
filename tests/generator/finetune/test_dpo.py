"""Rounds of Diffusion-DPO, with a generator of two matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import toy
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.dpo import DpoConfig, DpoPairs, train_dpo

CONFIG = DpoConfig(steps=40, batch_size=8, learning_rate=0.02, lora_rank=2, beta=50.0, fraction=0.25)


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
    generator, params = toy.make_toy()
    seen = []

    def on_step(step, loss, pair_accuracy):
        seen.append((step, float(loss), float(pair_accuracy)))

    first = train_dpo(generator, params, Adapter(), make_pairs(), CONFIG, jax.random.key(0), on_step)
    steps, losses, accuracies = zip(*seen, strict=True)
    assert steps == tuple(range(1, 41))
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-4)
    assert np.mean(losses[-10:]) < np.log(2) - 0.05 and np.mean(accuracies[-10:]) > 0.6

    seen.clear()
    second = train_dpo(generator, params, first, make_pairs(), CONFIG, jax.random.key(1), on_step)
    # The reference is where the round began.
    np.testing.assert_allclose(seen[0][1], np.log(2), rtol=1e-4)
    # It was not given away to the training step.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, second)
    assert all(value > 1e-4 for value in jax.tree.leaves(moved))
