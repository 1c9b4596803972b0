"""The training loop: results, exact resuming, and failure on a non-finite loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from utilgen_jax.pretraining import fit as fit_module
from utilgen_jax.pretraining.autoencoder import latent_scaling_factor
from utilgen_jax.pretraining.clip import INITIAL_LOGIT_SCALE, contrastive_loss
from utilgen_jax.pretraining.fit import batch_indices, fit
from utilgen_jax.pretraining.sizes import Training

TRAINING = Training(steps=60, batch_size=4, learning_rate=0.1)
AVERAGED = dataclasses.replace(TRAINING, ema_decay=0.9)
START = {"weight": jnp.zeros(3)}
DATA = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def loss_fn(params, batch, key):
    """Depends on batch and key, which a resumed run must repeat."""
    target = batch + 0.1 * jax.random.normal(key, batch.shape)
    return jnp.square(params["weight"] - target).mean()


def get_batch(step):
    return DATA[batch_indices(1, step, len(DATA), TRAINING.batch_size)]


def by_hand(training, ema_decay):
    """The same training as a plain loop with optax."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, training.steps // 2, training.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4))
    params = average = START
    state = optimizer.init(params)
    for step in range(training.steps):
        key = jax.random.fold_in(jax.random.key(9), step)
        gradients = jax.grad(loss_fn)(params, get_batch(step), key)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        decay = min(ema_decay, (1 + step) / (10 + step))
        average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, average, params)
    return average if ema_decay else params


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_fit_is_the_config(tmp_path, ema_decay):
    params = fit(tmp_path / "toy", loss_fn, START, get_batch, dataclasses.replace(TRAINING, ema_decay=ema_decay), 9)
    np.testing.assert_allclose(params["weight"], by_hand(TRAINING, ema_decay)["weight"], rtol=1e-4)


def test_a_resumed_fit_equals_an_unbroken_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "CHECKPOINT_EVERY_SECONDS", 0.0)
    short = dataclasses.replace(AVERAGED, steps=14)
    whole = fit(tmp_path / "whole" / "toy", loss_fn, START, get_batch, short, 9)
    seen = []

    def power_cut(step):
        seen.append(step)
        if step == 9:
            raise KeyboardInterrupt
        return get_batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken" / "toy", loss_fn, START, power_cut, short, 9)

    def watched(step):
        seen.append(step)
        return get_batch(step)

    capsys.readouterr()
    resumed = fit(tmp_path / "broken" / "toy", loss_fn, START, watched, short, 9)
    # The first batch stands for the data; then it goes on after the last step that was saved.
    assert seen == [0, *range(10), 0, *range(9, 14)]
    np.testing.assert_array_equal(resumed["weight"], whole["weight"])
    assert "14/14 steps" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_fit_and_names_model_and_step(tmp_path):
    def broken_after_ten(step):
        return get_batch(step) * (np.nan if step >= 10 else 1.0)

    with pytest.raises(FloatingPointError, match="pretraining: toy: the loss is nan at step 50"):
        fit(tmp_path / "toy", loss_fn, START, broken_after_ten, TRAINING, 9)


def test_batches_follow_from_seed_and_step_and_cover_the_data():
    np.testing.assert_array_equal(batch_indices(3, 7, 100, 16), batch_indices(3, 7, 100, 16))
    assert not np.array_equal(batch_indices(3, 7, 100, 16), batch_indices(3, 8, 100, 16))
    assert not np.array_equal(batch_indices(3, 7, 100, 16), batch_indices(4, 7, 100, 16))
    drawn = np.concatenate([batch_indices(3, step, 10, 16) for step in range(20)])
    assert set(drawn) == set(range(10))


EMBEDS = jax.random.normal(jax.random.key(1), (2, 4, 6))  # of 4 images and 4 captions
DISTINCT = jnp.arange(4)[:, None] * jnp.ones((1, 3), jnp.int32)


def test_contrastive_loss_of_distinct_captions_is_clips():
    # Radford et al. 2021, figure 3.
    image, text = (torch.nn.functional.normalize(torch.tensor(np.array(embeds)), dim=-1) for embeds in EMBEDS)
    logits = image @ text.T * np.exp(INITIAL_LOGIT_SCALE)
    answers = torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, answers) + cross_entropy(logits.T, answers)) / 2
    loss = contrastive_loss(*EMBEDS, DISTINCT, INITIAL_LOGIT_SCALE)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)


def test_contrastive_loss_shares_the_target_between_equal_captions():
    # Four equal captions and embeddings: the loss is that of guessing, log 4.
    same = jnp.broadcast_to(EMBEDS[1, :1], EMBEDS[1].shape)
    loss = contrastive_loss(same, same, jnp.zeros((4, 3), jnp.int32), INITIAL_LOGIT_SCALE)
    assert float(loss) == pytest.approx(np.log(4), rel=1e-5)
    # Two perfectly separated pairs at a high inverse temperature: the choice within a pair remains, log 2.
    pairs = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    loss = contrastive_loss(pairs, pairs, jnp.array([[7], [7], [8], [8]]), np.log(100.0))
    assert float(loss) == pytest.approx(np.log(2), rel=1e-5)


def test_contrastive_loss_ignores_lengths_and_bounds_the_temperature():
    loss = contrastive_loss(*EMBEDS, DISTINCT, jnp.log(100.0))
    np.testing.assert_allclose(contrastive_loss(3.0 * EMBEDS[0], 0.5 * EMBEDS[1], DISTINCT, 9.0), loss, rtol=1e-4)


def test_the_scaling_factor_gives_the_means_unit_variance():
    rng = np.random.default_rng(2)
    moments = np.concatenate([rng.normal(0, 3.0, (50, 4, 4, 4)), rng.normal(-9, 1, (50, 4, 4, 4))], -1)
    factor = latent_scaling_factor(moments.astype(np.float32))
    assert np.std(moments[..., :4] * factor) == pytest.approx(1.0, rel=1e-4)
