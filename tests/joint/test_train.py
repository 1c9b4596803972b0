"""The joint update at work, with a generator of two matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cut_off import assert_goes_on
from tests.generator import toy
from tests.joint.toy_joint import CLASSIFIER, JOINT, PROGRAM, make_data, make_examples
from tests.toy_images import NUM_CLASSES
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.joint.program import LEVELS
from utilgen_jax.joint.step import first_inputs
from utilgen_jax.joint.train import num_steps, predict_weights, train_jointly
from utilgen_jax.runtime.sharding import init_sharded
from utilgen_jax.runtime.training_loop import TrainingLoop

PARTS = {
    "weights": lambda result: result.weighting["network"],
    "attributes": lambda result: result.weighting["attributes"],
    "lora": lambda result: result.adapter.unet_lora,
    "difficulty": lambda result: (result.adapter.difficulty_offset, result.adapter.difficulty_logits),
}


def train(seed=0, joint=None, start=None, loop=None, **changes):
    real, pool = make_examples()
    program = dataclasses.replace(PROGRAM, joint=joint or JOINT, **changes)
    folds = cross_fit_folds(np.asarray(real.labels), 2, 0)
    key, sd = jax.random.key(seed), toy.make_toy()
    return train_jointly(CLASSIFIER, program, sd, real, pool, make_data(), folds, start, key, loop or TrainingLoop())


def start_of(result, level):
    """The level before any update."""
    program, sd = PROGRAM, toy.make_toy()
    inputs = first_inputs(program, sd, make_data())
    key = jax.random.fold_in(jax.random.key(0), 0)
    # As in training: compiled otherwise, random numbers are other ones in the last place.
    init = lambda params, lora, key: program.init_outer(params, inputs, lora, key)
    outer = init_sharded(init, sd.params, program.init_lora(sd.params, inputs, key), key)
    fresh = dataclasses.replace(result, adapter=outer["adapter"], weighting=outer["weighting"])
    return PARTS[level](fresh)


def distance(one, other):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, one, other)))


@pytest.fixture(scope="module")
def trained():
    return train()


def test_a_lora_that_is_drawn_before_is_the_one_that_a_jitted_start_draws():
    sd, key = toy.make_toy(), jax.random.key(3)
    inputs = first_inputs(PROGRAM, sd, make_data())
    init = jax.jit(lambda params, start: PROGRAM.init_outer(params, inputs, start, key))
    before = PROGRAM.init_lora(sd.params, inputs, key)
    jax.tree.map(np.testing.assert_array_equal, init(sd.params, before), init(sd.params, None))


def test_every_part_moves(trained):
    for level in LEVELS:
        assert distance(PARTS[level](trained), start_of(trained, level)) > 1e-3, level
    for leaf in jax.tree.leaves((trained.adapter, trained.weighting)):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_part_that_is_left_out_stays_and_the_others_come_out_otherwise(trained, level):
    result = train(without=(level,))
    if level in ("lora", "difficulty"):
        assert distance(PARTS[level](result), start_of(result, level)) == 0
    else:
        name = "network" if level == "weights" else "attributes"
        assert name not in result.weighting
        assert level == "weights" or result.attribute_logits is None
    for other in set(LEVELS) - {level}:
        assert distance(PARTS[other](result), PARTS[other](trained)) > 1e-7, other
    assert distance(result.classifiers, trained.classifiers) > 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anchor", "coverage", "bounds"])
def test_a_regularizer_that_is_left_out_makes_a_difference(trained, name):
    wild = dataclasses.replace(JOINT, difficulty_learning_rate=5.0)
    kept, free = train(joint=wild), train(joint=wild, without=(name,))
    assert distance(kept.adapter, free.adapter) > 1e-6
    assert kept.difficulties.min() >= 0.2 - 1e-6 and kept.difficulties.max() <= 0.8 + 1e-6
    if name == "bounds":
        assert max(np.abs(free.difficulties - 0.5)) > 0.31


def test_before_the_first_update_the_generator_is_as_it_is():
    sd, data = toy.make_toy(), make_data()
    inputs = first_inputs(PROGRAM, sd, data)
    outer = PROGRAM.init_outer(sd.params, inputs, None, jax.random.key(3))
    images = [generate_images(sd, adapter, inputs, PROGRAM.step_sampling) for adapter in (Adapter(), outer["adapter"])]
    np.testing.assert_array_equal(*images)


def test_it_can_start_from_another_adapter(trained):
    still = dataclasses.replace(JOINT, steps=1, lora_learning_rate=1e-8, encoder_learning_rate=1e-8)
    given = dataclasses.replace(trained.adapter, difficulty_encoder=trained.adapter.difficulty_offset)
    given = dataclasses.replace(given, difficulty_offset=None, difficulty_logits=None)
    result = train(joint=still, start=given)
    assert distance(result.adapter.unet_lora, given.unet_lora) < 1e-5
    assert distance(result.adapter.difficulty_encoder, given.difficulty_encoder) < 1e-5
    assert result.adapter.difficulty_offset is None and result.difficulties.shape == (NUM_CLASSES,)


def test_steps_are_told_plain_ones_first_and_every_mth_is_of_both_levels():
    seen = []
    joint = dataclasses.replace(JOINT, steps=8, outer_every=2, ema_decay=0.0)
    result = train(
        joint=joint, loop=TrainingLoop(lambda step, loss, **scalars: seen.append((step, "penalty" in scalars)))
    )
    plain = 2 * JOINT.plain_steps
    assert [step for step, _ in seen] == list(range(1, plain + 9))
    assert num_steps(dataclasses.replace(PROGRAM, joint=joint), 2) == plain + 8
    assert [is_outer for _, is_outer in seen[plain:]] == [True, True, False, False] * 2
    # Without an average the classifiers are those of the last steps.
    assert {len(leaf) for leaf in jax.tree.leaves(result.classifiers)} == {2}


@pytest.mark.slow
def test_several_inner_steps_are_looked_through(trained):
    result = train(joint=dataclasses.replace(JOINT, inner_steps=2))
    for level in LEVELS:
        moved = distance(PARTS[level](result), start_of(result, level))
        assert moved > 1e-3 and distance(PARTS[level](result), PARTS[level](trained)) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("without", ["weights", "attributes"])
def test_useless_images_get_small_weights_and_their_attribute_becomes_less_probable(without):
    real, pool = make_examples()
    joint = dataclasses.replace(JOINT, plain_steps=40, inner_learning_rate=0.01, steps=160)
    joint = dataclasses.replace(joint, attribute_learning_rate=0.05)
    program = dataclasses.replace(PROGRAM, joint=joint, without=(without,))
    result = train(joint=joint, without=(without,))
    if without == "weights":
        assert result.attribute_logits[1] < result.attribute_logits[0] - 0.15
        return
    weights, losses = predict_weights(CLASSIFIER, program, result, 2 * [real], pool)
    assert weights.shape == losses.shape == (2, len(pool))
    is_wrong = np.asarray(pool.attributes)[:, 1] == 1
    assert (weights[:, ~is_wrong].mean(1) > weights[:, is_wrong].mean(1) + 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("cut_after", [3, 7])
def test_an_update_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, cut_after):
    # Two folds of two plain steps, then the joint ones.
    assert_goes_on(lambda loop: train(loop=loop), tmp_path, cut_after)
