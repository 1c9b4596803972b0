"""The joint update's steps: what training, gate and values are given, and what of it is kept."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiment.conftest import NamedPool, random_pool
from utilgen_jax.experiment import joint
from utilgen_jax.experiment.keys import Key
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.joint.gate import Gate
from utilgen_jax.joint.train import JointResult

TRAINED = JointResult(
    adapter=Adapter(
        unet_lora={"layer": {"up": np.full(2, 0.5, np.float32)}}, difficulty_logits=np.array([0.0, 1.0], np.float32)
    ),
    weighting={"attributes": {"logits": np.arange(5.0, dtype=np.float32)}},
    classifiers={"kernel": np.ones((2, 3), np.float32)},
)
SETTINGS = {"prompts__attributes": "thin|bold,small"}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def given(make_experiment, monkeypatch):
    """Experiments of joint whose long steps note their arguments in `given.calls`, by name."""
    calls = {}

    def record(name, result):
        def run(*arguments):
            assert name not in calls, "computed twice"
            calls[name] = arguments
            return result

        monkeypatch.setattr(joint, name, run)

    record("train_jointly", TRAINED)
    record("make_anchor_set", np.ones(3))
    record("compare_pools", Gate(np.array([0.5, 0.7, 0.6], np.float32)))
    record("predict_weights", (np.array([[0.2, 0.4], [0.4, 0.8]], np.float32), np.ones((2, 2), np.float32)))
    states = lambda sd, prompts: jnp.array([[[float(len(prompt))]] for prompt in prompts])
    monkeypatch.setattr(joint, "encode_prompts", states)
    monkeypatch.setattr(joint, "encode_negative_prompt", lambda sd, prompt: states(sd, [prompt]))

    def make(**settings):
        experiment = make_experiment("joint", **SETTINGS, **settings)
        experiment.adapters.__dict__["sd"] = "the checkpoint"
        experiment.adapters.prompt_embeds = states
        experiment.adapters.latents = lambda sd, images: images
        experiment.values.difficulty = lambda pool: np.zeros(len(pool.labels), np.float32)
        return experiment

    return SimpleNamespace(make=make, calls=calls)


def test_without_the_gate_the_compiled_update_is_the_same(given):
    steps = given.make().joint
    assert steps.program(("gate",)) == steps.program()
    assert steps.program(("gate", "lora", "anchor")).without == ("lora", "anchor")


def test_training_gets_shots_pool_and_prompts_with_their_features(given):
    experiment, plain = given.make(), random_pool(8)
    experiment.joint.train(NamedPool(), plain, None, ("lora",))
    classifier, program, sd, real, pool, data, folds, start, key, loop = given.calls["train_jointly"]
    assert classifier is experiment.classifier and folds is experiment.folds and start is None
    assert sd == "the checkpoint"
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(experiment.key(Key.JOINT)))
    assert (program.without, program.num_attributes) == (("lora",), 5)
    assert program.joint == experiment.config.section(JointConfig)
    assert program.valuation == experiment.config.valuation and program.config == experiment.classifier_config
    np.testing.assert_array_equal(real.inputs, experiment.real.inputs)
    np.testing.assert_array_equal(pool.inputs, experiment.examples(plain).inputs)
    assert real.attributes.shape == (4, 5) and pool.attributes.shape == (8, 5)
    assert not real.difficulty.any() and (pool.difficulty == 0.5).all()
    latents_of, labels, class_embeds, sizes = given.calls["make_anchor_set"][1:5]
    np.testing.assert_array_equal(latents_of(np.array([3, 0])), plain.images[np.array([3, 0])])
    assert labels.tolist() == plain.labels.tolist() and sizes == (8, 100) and data.anchors.tolist() == [1, 1, 1]
    assert class_embeds[:, 0, 0].tolist() == [len(prompt) for prompt in experiment.word_prompts]
    # Each prompt's class and attributes are its own.
    assert data.prompt_labels.tolist() == [0] * 16 + [1] * 16
    prompts = sum(experiment.pools.attribute_prompts(number=16), [])
    for prompt, embeds, attributes in zip(prompts, data.prompt_embeds, data.prompt_attributes, strict=True):
        assert embeds == len(prompt)
        assert attributes.tolist()[1:3] == ["thin" in prompt, "bold" in prompt]
        assert attributes.tolist()[3:] == ["small" not in prompt, "small" in prompt]


def test_words_are_among_the_features(given):
    names = ",".join(["zero|eight", *(f"other {n}" for n in range(9))])
    experiment = given.make(data__class_names=names)
    plain = random_pool(4)
    records = tuple(
        dataclasses.replace(record, word=word)
        for record, word in zip(plain.records, ("eight", None, "zero", None), strict=True)
    )
    plain = dataclasses.replace(plain, pool=dataclasses.replace(plain.pool, records=records))
    experiment.joint.train(NamedPool(), plain, None, ())
    _, program, _, real, pool, data, *_ = given.calls["train_jointly"]
    assert program.num_attributes == 7 and real.attributes.shape == (4, 7) and not real.attributes.any()
    # Plain images' prompts hold a word and no attribute, which is a value too: the same as in `value`.
    assert pool.attributes[:, 5:].tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert pool.attributes[:, :5].tolist() == [[1, 0, 0, 1, 0]] * 4
    prompts = sum(experiment.pools.attribute_prompts(number=16), [])
    for prompt, attributes in zip(prompts, data.prompt_attributes, strict=True):
        assert attributes.tolist()[5:] == ["digit zero" in prompt, "digit eight" in prompt]
    assert data.prompt_attributes[:16, 5:].sum(0).tolist() == [8, 8]
    # The class as a whole is the mean of its words.
    lengths = [len(prompt) for prompt in experiment.word_prompts]
    assert given.calls["make_anchor_set"][3][:, 0, 0].tolist() == [(lengths[0] + lengths[1]) / 2, lengths[2]]


def test_what_is_trained_is_read_by_the_next_run(given):
    for _ in range(2):
        experiment = given.make()
        found = experiment.joint.train(NamedPool(), random_pool(4), None, ())
        assert_equal(found.adapter, jax.tree.map(jnp.asarray, TRAINED.adapter))
        np.testing.assert_array_equal(found.attribute_logits, np.arange(5.0))
        np.testing.assert_allclose(found.difficulties, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
        assert list(experiment.stages.seconds) == ["joint_named"]


def test_the_gate_compares_plain_images_with_those_that_the_adapter_would_make(given, monkeypatch, capsys):
    experiment, plain = given.make(joint__gate_images=2, joint__gate_steps=7), random_pool(8)
    made = []

    def generate(sd, records, adapter, sampling):
        made.append((sd, records, adapter))
        yield np.full((3, 16, 16, 3), 0.25, np.float32)
        yield np.full((1, 16, 16, 3), 0.25, np.float32)

    monkeypatch.setattr(joint, "generate_batches", generate)
    gate = experiment.joint.gate(NamedPool(), plain, TRAINED)
    ((sd, records, adapter),) = made
    assert sd == "the checkpoint" and adapter is TRAINED.adapter
    assert [record.label for record in records] == [0, 1, 0, 1]
    assert {(record.label, record.requested_difficulty) for record in records} == {(0, 0.5), (1, 0.7311)}
    _, config, real, (first, second), folds, key, _ = given.calls["compare_pools"]
    assert config == dataclasses.replace(experiment.classifier_config, steps=7) and folds is experiment.folds
    np.testing.assert_array_equal(first.inputs, experiment.examples(plain).inputs[:4])
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_allclose(second.inputs, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(experiment.key(Key.GATE)))
    assert gate.is_open and "the adapter is used" in capsys.readouterr().err
    experiment.joint.gate(NamedPool(), plain, TRAINED)
    assert not capsys.readouterr().err  # told once
    # Read by another run.
    assert given.make(joint__gate_images=2, joint__gate_steps=7).joint.gate(NamedPool(), plain, TRAINED).is_open


def test_a_pool_is_valued_at_its_prompts_and_difficulties(given):
    experiment, pool = given.make(), random_pool(2, NamedPool(holds_attributes=True))
    changes = {"prompt": "a digit, bold"}, {"prompt": "a digit", "requested_difficulty": 0.75}
    records = tuple(dataclasses.replace(record, **each) for record, each in zip(pool.records, changes, strict=True))
    pool = dataclasses.replace(pool, pool=dataclasses.replace(pool.pool, records=records))
    values = experiment.joint.value("name", pool, TRAINED, ("anchor",))
    _, program, trained, shots, examples = given.calls["predict_weights"]
    assert trained is TRAINED and program.without == ("anchor",)
    assert [len(known) for known in shots] == [len(fold.train_indices) for fold in experiment.folds]
    assert examples.difficulty.tolist() == [0.5, 0.75]
    assert examples.attributes.tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 1, 0]]
    np.testing.assert_allclose(values.weights, [0.3, 0.6], rtol=1e-6)
    assert list(experiment.stages.seconds) == ["value_name"]


def test_the_updates_classifiers_are_tested_together(make_experiment, monkeypatch):
    experiment = make_experiment("joint")
    test = experiment.split.test
    right = np.eye(2, dtype=np.float32)[test.labels]
    # The first is right of all images but the first, of which it is less sure than the second.
    first, second = 3 * right, np.zeros_like(right)
    first[0], second[0] = 1.0 * right[0][::-1], 9.0 * right[0]
    said = {1.0: first, 2.0: second}
    monkeypatch.setattr(experiment.classifiers, "predict", lambda params, images: said[float(params["kernel"][0])])
    trained = dataclasses.replace(TRAINED, classifiers={"kernel": np.array([[1.0], [2.0]], np.float32)})
    assert experiment.joint.accuracy(NamedPool(), trained) == 1
    assert list(experiment.stages.seconds) == ["evaluation_named_update"]


def test_the_report_gets_probabilities_difficulties_and_the_gates_numbers(given):
    experiment, plain = given.make(prompts__attribute_probability=0.5), random_pool(8)
    assert experiment.joint.findings(NamedPool(), plain, TRAINED, has_gate=False).gate_gains is None
    logits = np.array([0.0, 0.0, np.log(2), 0.0, 0.0], np.float32)
    trained = dataclasses.replace(TRAINED, weighting={"attributes": {"logits": logits}})
    found = experiment.joint.findings(NamedPool(), plain, trained, has_gate=False)
    assert [row[:3] for row in found.attributes] == [
        ("thin|bold", "", 0.5), ("thin|bold", "thin", 0.25), ("thin|bold", "bold", 0.25),
        ("small", "", 0.5), ("small", "small", 0.5),
    ]  # fmt: skip
    np.testing.assert_allclose([row[3] for row in found.attributes], [0.4, 0.2, 0.4, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.requested_difficulty, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
    assert found.plain_difficulty.tolist() == [0] * 8
