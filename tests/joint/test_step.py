"""One update of all parts: one program, the right gradient, the same on eight devices."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.generator import toy
from tests.joint.finite_differences import relative_error, slopes
from tests.joint.toy_joint import CLASSIFIER, JOINT, PROGRAM, make_data, make_examples, make_state
from tests.toy_images import draw_batch
from utilgen_jax.bilevel import check_finite
from utilgen_jax.bilevel.examples import count_classes
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import PooledStates
from utilgen_jax.joint.program import LEVELS, JointBatch, JointProgram
from utilgen_jax.joint.step import joint_update
from utilgen_jax.runtime import sharding

KEY = jax.random.key(4)


def arguments(program=PROGRAM, sd=None, data=None, dtype=np.float32, **changes):
    """Of `joint_update`: every second shot is held out."""
    sd, data = sd or toy.make_toy(), data or make_data()
    real, pool = jax.tree.map(lambda leaf: cast(leaf, dtype), make_examples())
    state = make_state(program, sd, data, real.inputs, KEY, **changes)
    train_set, held_out = (real.take(np.arange(first, 24, 2)) for first in (0, 1))
    batch = JointBatch(draw_batch(program.config, train_set, pool, KEY), count_classes(train_set), held_out)
    shots = train_set.take(np.arange(program.joint.num_generated))
    return program, CLASSIFIER, state, sd, data, dataclasses.replace(batch, shots=shots), KEY


def cast(leaf, dtype):
    return leaf.astype(dtype) if leaf.dtype == np.float32 else leaf


def away_from_the_start(outer):
    """There half of the gradients are zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype), outer)


def test_one_program_holds_the_gradients_of_all_parts():
    lowered = joint_update.lower(*arguments())
    text = lowered.as_text(debug_info=True)
    assert text.count("func.func public @main") == 1
    for part in ("TinyClassifier", "WeightNet", "DifficultyEncoder", r"jit\(sample"):
        # Backwards, as JAX names what a gradient computes.
        assert re.search(rf"transpose\([^\"]*jvp\({part}", text), part
    # The weights' and the generator's gradients go through the classifier's own step.
    assert "jvp(transpose(jvp(TinyClassifier" in text


def test_training_traces_it_once():
    program = dataclasses.replace(PROGRAM, joint=dataclasses.replace(JOINT, num_generated=6))
    before = joint_update._cache_size()
    _, _, state, *rest = arguments(program)
    for _ in range(3):
        state, _ = joint_update(program, CLASSIFIER, state, *rest)
    assert joint_update._cache_size() == before + 1


def assert_same_update(found, expected):
    """(state, metrics) of two updates."""
    (found, found_metrics), (expected, metrics) = found, expected
    np.testing.assert_allclose(found_metrics.losses, metrics.losses, atol=1e-5)
    np.testing.assert_allclose(found_metrics.utilities, metrics.utilities, atol=1e-5)
    np.testing.assert_allclose(found_metrics.penalty, metrics.penalty, atol=1e-5)
    for name in ("params", "outer", "ema_params"):
        for one, other in zip(*(jax.tree.leaves(getattr(state, name)) for state in (expected, found)), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_pooled_states_reach_the_unet_in_all_its_calls():
    """Those of Stable Diffusion XL: of drawn prompts, of the negative one, and of the anchors' classes."""
    plain = make_data()

    def with_pooled(scale):
        def pooled(states, seed):
            return PooledStates(states, toy.normal(seed, len(states), 3, scale=scale))

        anchors = dataclasses.replace(plain.anchors, class_embeds=pooled(plain.anchors.class_embeds, 11))
        return dataclasses.replace(
            plain,
            anchors=anchors,
            prompt_embeds=pooled(plain.prompt_embeds, 12),
            negative_prompt_embeds=pooled(plain.negative_prompt_embeds, 13),
        )

    without, with_some = (joint_update(*arguments(data=with_pooled(scale)))[1] for scale in (0.0, 1.0))
    assert abs(with_some.penalty - without.penalty) > 1e-3  # the anchors'
    assert not np.allclose(with_some.losses, without.losses, atol=1e-5)


@pytest.fixture
def plain_descent(monkeypatch):
    """Adam would divide a gradient of nearly nothing by its own size, and sums are taken in another order."""
    monkeypatch.setattr(JointProgram, "outer_optimizer", property(lambda self: optax.sgd(1.0)))


@pytest.mark.slow
@pytest.mark.parametrize("without", [(), ("anchor",)])
def test_images_that_are_made_in_parts_make_the_same_update(without, plain_descent):
    whole = dataclasses.replace(PROGRAM, without=without)
    in_parts = dataclasses.replace(whole, joint=dataclasses.replace(JOINT, micro_batch_size=2))
    updates = [joint_update(*arguments(program, disturb=away_from_the_start)) for program in (whole, in_parts)]
    assert_same_update(*reversed(updates))


@pytest.mark.slow
def test_eight_devices_make_the_same_update(plain_descent):
    expected = joint_update(*arguments(disturb=away_from_the_start))
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        _, _, state, sd, data, batch, key = arguments(disturb=away_from_the_start)
        whole = sharding.replicate((state, data, batch))
        sd = sd.replace(params=sharding.shard_params(sd.params, mesh))
        found = joint_update(PROGRAM, CLASSIFIER, whole[0], sd, *whole[1:], key)
    assert len(found[0].step.sharding.device_set) == 8
    assert_same_update(found, expected)


@pytest.mark.parametrize(("name", "group"), [("unet_lora", "adapter"), ("network", "weighting")])
def test_what_is_not_finite_is_named(name, group):
    def spoil(outer):
        part = getattr(outer["adapter"], name) if group == "adapter" else outer["weighting"][name]
        spoilt = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), part)
        if group == "adapter":
            return outer | {"adapter": dataclasses.replace(outer["adapter"], **{name: spoilt})}
        return outer | {"weighting": outer["weighting"] | {name: spoilt}}

    state, _ = joint_update(*arguments(disturb=spoil))
    with pytest.raises(FloatingPointError, match=name):
        check_finite(state.first_nonfinite)


def test_balanced_softmax_is_the_loss_of_the_updates_steps_too():
    program, classifier, state, sd, data, batch, key = arguments()
    config = dataclasses.replace(program.config, loss="balanced_softmax", label_smoothing=0.0)
    counts = np.array([4.0, 1.0, 1.0, 1.0], np.float32)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    batch = JointBatch(batch.examples, jnp.asarray(counts))
    _, metrics = joint_update(dataclasses.replace(program, config=config), classifier, state, sd, data, batch, key)
    # Logits of zero are those of the classes' frequencies.
    labels = np.asarray(metrics.targets).argmax(-1)
    np.testing.assert_allclose(metrics.losses, -np.log(counts / counts.sum())[labels], rtol=1e-5)


class MeanColour:
    """An image encoder whose embedding is the mean pixel."""

    image_size = 8

    def apply(self, variables, pixels):
        return SimpleNamespace(image_embeds=pixels.mean((1, 2)))


def test_coverage_is_taken_in_the_features_of_classifier_image_encoder_or_both():
    sd = toy.make_toy()
    statistics = {"image_encoder": MeanColour(), "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    architecture = dataclasses.replace(sd.architecture, **statistics)
    sd = StableDiffusion(architecture, sd.params | {"image_encoder": {}})

    def penalty(*features):
        joint = dataclasses.replace(JOINT, coverage=1.0, coverage_features=features)
        program = dataclasses.replace(PROGRAM, joint=joint, without=("anchor",))
        return float(joint_update(*arguments(program, sd))[1].penalty)

    of_classifier, of_encoder = penalty("classifier"), penalty("image_encoder")
    assert min(of_classifier, of_encoder) > 1e-3 and abs(of_classifier - of_encoder) > 1e-3
    assert penalty("classifier", "image_encoder") == pytest.approx(of_classifier + of_encoder, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_is_that_of_finite_differences_in_float64(level, plain_descent):
    """Of validation loss and anchor, in each part of the outer level; what the weighting looks at is a number."""
    others = () if level == "weights" else ("weights",)
    joint = dataclasses.replace(JOINT, inner_learning_rate=0.01, differentiable_steps=2, coverage=0.0)
    program = dataclasses.replace(PROGRAM, joint=joint, without=others)
    with jax.enable_x64(True):
        check_gradient(program, level)


def check_gradient(program, level):
    double = lambda tree: jax.tree.map(lambda leaf: cast(leaf, float), tree)
    sd, data = toy.make_toy(), double(make_data())
    sd = dataclasses.replace(sd, params=double(sd.params))
    _, _, start, _, *rest = arguments(
        program, sd, data, float, disturb=lambda outer: away_from_the_start(double(outer))
    )

    def run(outer):
        state = jax.tree.map(jnp.copy, dataclasses.replace(start, outer=outer))
        state, metrics = joint_update(program, CLASSIFIER, state, sd, *rest)
        return float(metrics.validation_loss + metrics.penalty), state.outer

    # The weight network has kinks.
    found, expected = slopes(run, start.outer, level, 1e-5 if level == "weights" else 1e-4, seed=1)
    assert abs(expected) > 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_gradient_through_stable_diffusion_is_that_of_finite_differences(plain_descent, tmp_path):
    from tests.diffusers_checkpoint import write_quick_stable_diffusion  # torch is slow to import

    folder = write_quick_stable_diffusion(tmp_path)
    joint = dataclasses.replace(JOINT, inner_learning_rate=0.01, differentiable_steps=2, coverage=0.0, num_generated=4)
    program = dataclasses.replace(PROGRAM, joint=joint)
    with jax.enable_x64(True):
        sd = load_stable_diffusion(folder, jnp.dtype("float64"))
        program = dataclasses.replace(program, latent_shape=sd.architecture.latent_shape((16, 16)))
        assert relative_error(program, CLASSIFIER, sd, "weights") < 1e-4
        for level in LEVELS[1:]:
            without = dataclasses.replace(program, without=("weights",))
            # The requested difficulty reaches the loss through float32 alone, and by little.
            assert relative_error(without, CLASSIFIER, sd, level) < (1e-3 if level == "difficulty" else 1e-4), level
