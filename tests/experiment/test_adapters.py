"""The generator's steps: what each training is given, that its result is the library's, and that it is kept."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.experiment.conftest import NamedPool, random_pool
from utilgen_jax.classifier.train import init_classifier
from utilgen_jax.data.images import to_float
from utilgen_jax.experiment import adapters
from utilgen_jax.experiment.keys import Key
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.clip_similarity import clip_similarity, embed_prompts, load_text_projection
from utilgen_jax.generator.clip_towers import image_tower_of
from utilgen_jax.generator.conditioning import encode_images, encode_prompts
from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.finetune.config import DpoConfig, LoraConfig, TextualInversionConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet
from utilgen_jax.generator.finetune.dpo import DpoPairs, train_dpo
from utilgen_jax.generator.finetune.lora import train_lora
from utilgen_jax.generator.finetune.textual_inversion import initial_embeds, train_textual_inversion
from utilgen_jax.generator.inputs import make_sample_inputs
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.per_image import AnchoredUtility, add_golden_noise, optimize_prompts
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.methods.datadream import DataDreamConfig, DataDreamPool
from utilgen_jax.methods.difficulty import DifficultyConfig
from utilgen_jax.methods.utilgen import UtilGenPool
from utilgen_jax.runtime.sharding import replicate
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.cross_fit import make_weighting, predict_weights

TOKENS = UtilGenPool(dpo=False, prompts=False, noise=False)
ATTRIBUTED = NamedPool("attributed", holds_attributes=True)


def with_prompts(pool, prompts):
    """The pool with these prompts, in turn."""
    records = tuple(
        dataclasses.replace(record, prompt=prompts[place % len(prompts)]) for place, record in enumerate(pool.records)
    )
    return dataclasses.replace(pool, pool=dataclasses.replace(pool.pool, records=records))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, expected))


# What the trainings are given. Encoders and trainings take no time: latents are the images themselves.


def states(sd, prompts):
    """Stands for text states [P, 1, 1]: the length of each prompt."""
    return jnp.array([[[float(len(prompt))]] for prompt in prompts])


@pytest.fixture
def given(make_experiment, monkeypatch):
    """An experiment of "difficulty" whose trainings note their arguments in `given.calls`, by name."""
    calls = {}
    results = {
        "train_lora": Adapter(unet_lora={"layer": {"up": np.arange(4.0, dtype=np.float32)}}),
        "train_dpo": Adapter(unet_lora={"layer": {"up": np.ones(3, np.float32)}}),
        "train_textual_inversion": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    }

    def record(name):
        def run(*arguments):
            assert name not in calls, "trained twice"
            calls[name] = arguments
            return results[name]

        return run

    for name in results:
        monkeypatch.setattr(adapters, name, record(name))
    monkeypatch.setattr(adapters, "encode_to_latents", lambda sd, images: images)
    monkeypatch.setattr(adapters, "encode_prompts", states)
    monkeypatch.setattr(adapters, "initial_embeds", lambda sd, names: ("embeds of", *names))

    def make(method="difficulty", **settings):
        experiment = make_experiment(method, generator__batch_size=3, **settings)
        architecture = SimpleNamespace(latent_shape=lambda size: (*size, 3))
        experiment.adapters.__dict__ |= {
            name: SimpleNamespace(name=name, architecture=architecture) for name in ("sd", "sd_with_tokens")
        }
        return experiment

    return SimpleNamespace(make=make, calls=calls, results=results)


def is_set_of(found, images, labels, difficulties=None):
    np.testing.assert_allclose(found.latents, images, atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)
    if difficulties is None:
        assert found.difficulties is None
    else:
        np.testing.assert_array_equal(found.difficulties, difficulties)
    return True


def same_key(key, experiment, use, *folds):
    expected = jax.random.fold_in(jax.random.key(experiment.config.seed), int(use))
    for number in folds:
        expected = jax.random.fold_in(expected, number)
    return bool((key == expected).all())


def test_lora_learns_from_shots_and_prior_images(given):
    experiment, prior = given.make(), random_pool(7)
    config = LoraConfig(steps=3)
    adapter = experiment.adapters.train_lora(NamedPool(), config, prior)
    sd, embeds, shots, prior_set, used, key, _, zero_token = given.calls["train_lora"]
    assert not zero_token and sd.name == "sd" and used is config and same_key(key, experiment, Key.LORA)
    np.testing.assert_array_equal(embeds, states(sd, experiment.word_prompts))
    assert is_set_of(shots, to_float(experiment.generator_shots), experiment.split.real.labels)
    assert is_set_of(prior_set, to_float(prior.images), prior.labels)
    assert_equal(adapter, given.results["train_lora"])
    assert list(experiment.stages.seconds) == ["lora_named"]
    # The next run reads it; a second training would fail.
    again = given.make().adapters.train_lora(NamedPool(), config, prior)
    assert_equal(again, given.results["train_lora"])
    assert isinstance(again.unet_lora["layer"]["up"], jax.Array)


def test_without_prior_images_a_lora_learns_from_shots_alone_for_as_many_epochs_as_asked(given):
    experiment = given.make()
    config = LoraConfig(epochs=5, batch_size=2, prior_fraction=0.0, text_encoder_rank=2)
    experiment.adapters.sd.tokenizer = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "tokenize_prompts", lambda sd, prompts: np.array([[len(prompt)] for prompt in prompts]))
        experiment.adapters.train_lora(NamedPool(), config, None)
    _, ids, _, prior_set, used, *_ = given.calls["train_lora"]
    assert prior_set is None and used.steps == 10  # four shots
    np.testing.assert_array_equal(ids, [[len(prompt)] for prompt in experiment.word_prompts])


def test_crops_stand_in_for_the_shots_with_labels_and_difficulties(given):
    experiment = given.make()
    config = DifficultyConfig(crops=3, flip=True, prior_fraction=0.0)
    of_shots = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    experiment.adapters.train_lora(NamedPool(), config, None, (of_shots, np.zeros(0)))
    _, _, shots, *_ = given.calls["train_lora"]
    labels = experiment.split.real.labels
    np.testing.assert_array_equal(shots.labels, np.tile(labels, 3))
    np.testing.assert_array_equal(shots.difficulties, np.tile(of_shots, 3))
    # Digits are square: a crop is the image or its mirror image.
    images = to_float(experiment.generator_shots)
    for place, seen in enumerate(np.asarray(shots.latents)):
        same = [np.allclose(seen, image, atol=1e-6) for image in (images[place % 4], images[place % 4][:, ::-1])]
        assert any(same)


def test_each_class_has_a_lora_of_its_shots_alone(given, monkeypatch):
    experiment, prior, seen = given.make("datadream"), random_pool(6), []

    def train(sd, prompts, shots, prior_set, config, key, loop):
        seen.append(
            (np.unique(shots.labels).tolist(), np.unique(prior_set.labels).tolist(), config.steps, len(prompts))
        )
        return Adapter(unet_lora={"layer": {"up": np.full(2, float(shots.labels[0]), np.float32)}})

    monkeypatch.setattr(adapters, "train_lora", train)
    config = DataDreamConfig(epochs=3, batch_size=4, prior_fraction=0.5)
    of_class = experiment.adapters.train_class_loras(DataDreamPool(), config, prior)
    assert seen == [([0], [0], 3, 2), ([1], [1], 3, 2)]
    assert list(experiment.stages.seconds) == ["lora_datadream_0", "lora_datadream_1"]
    again = given.make("datadream").adapters.train_class_loras(DataDreamPool(), config, prior)
    for found in (of_class, again):
        assert [float(found(label).unet_lora["layer"]["up"][0]) for label in (0, 1)] == [0.0, 1.0]
    assert len(seen) == 2


def test_difficulties_go_with_their_images_easy_and_hard_ones_equally_often(given):
    experiment, prior = given.make(), random_pool(8)
    of_shots = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    of_prior = np.array([0.05, 0.01, 0.02, 0.03, 0.04, 0.06, 0.07, 0.95], np.float32)
    experiment.adapters.train_lora(NamedPool(), DifficultyConfig(), prior, (of_shots, of_prior), True)
    _, _, shots, prior_set, *_, zero_token = given.calls["train_lora"]
    assert zero_token
    assert is_set_of(shots, to_float(experiment.generator_shots), experiment.split.real.labels, of_shots)
    drawn = np.array([np.flatnonzero(of_prior == value).item() for value in np.asarray(prior_set.difficulties)])
    assert len(drawn) == 4 * 8
    assert is_set_of(prior_set, to_float(prior.images)[drawn], prior.labels[drawn], of_prior[drawn])
    # One of two parts of [0, 1] has a single image.
    assert 8 <= np.sum(drawn == 7) <= 24


def test_class_tokens_learn_from_the_template_with_the_token(given):
    experiment, prior = given.make("utilgen", prompts__template="one {class}"), random_pool(5)
    experiment.adapters.learn_class_tokens(prior)
    sd, prompts, initial, shots, prior_set, config, key, loop = given.calls["train_textual_inversion"]
    assert sd.name == "sd" and prompts == ["one <class-0>", "one <class-1>"] and initial == ("embeds of", "zero", "one")
    assert is_set_of(shots, to_float(experiment.generator_shots), experiment.split.real.labels)
    assert is_set_of(prior_set, to_float(prior.images), prior.labels)
    assert config == experiment.config.section(TextualInversionConfig)
    assert same_key(key, experiment, Key.TEXTUAL_INVERSION)


def test_class_tokens_are_added_to_the_checkpoint(given, monkeypatch):
    monkeypatch.setattr(
        adapters, "add_tokens", lambda sd, tokens, embeds: (sd.name, tokens, np.asarray(embeds).tolist())
    )
    for _ in range(2):  # computed, and read
        experiment = given.make("utilgen")
        del experiment.adapters.__dict__["sd_with_tokens"]
        experiment.adapters.learn_class_tokens(random_pool(5))
        expected = ("sd", ["<class-0>", "<class-1>"], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
        assert experiment.adapters.sd_with_tokens == expected
        assert experiment.adapters.sd_of(TOKENS) == expected
        assert experiment.adapters.sd_of(NamedPool()).name == "sd"


def test_class_tokens_that_are_not_learnt_yet_are_no_part_of_a_checkpoint(make_experiment):
    experiment = make_experiment("utilgen")
    with pytest.raises(RuntimeError, match="not learnt yet"):
        experiment.adapters.sd_of(TOKENS)


@pytest.mark.parametrize("round_number", [0, 2])
def test_dpo_pairs_useful_images_of_a_class_with_useless_ones(given, round_number):
    experiment = given.make("utilgen", dpo__fraction=0.5)
    reference = Adapter(unet_lora={"layer": {"up": jnp.zeros(3)}})
    pool = with_prompts(random_pool(8, TOKENS, adapter=reference, round=round_number), ["longer", "a", "bcd", None])
    weights = np.array([0.8, 0.1, 0.6, 0.2, 0.4, 0.9, 0.2, 0.3])
    adapter = experiment.adapters.train_dpo(TOKENS, pool, weights)
    sd, start, pairs, config, key, loop = given.calls["train_dpo"]
    assert sd.name == "sd_with_tokens" and start is reference and config == experiment.config.section(DpoConfig)
    assert same_key(key, experiment, Key.DPO, round_number)
    # Class 0 is 0, 2, 4, 6; class 1 is 1, 3, 5, 7.
    assert pairs.winners.tolist() == [0, 2, 5, 7] and pairs.losers.tolist() == [6, 4, 1, 3]
    np.testing.assert_allclose(pairs.latents, to_float(pool.images), atol=1e-6)
    np.testing.assert_array_equal(pairs.labels, pool.labels)
    assert pairs.prompt_embeds.shape == (4, 1, 1)
    lengths = np.asarray(pairs.prompt_embeds)[np.asarray(pairs.prompts), 0, 0]
    assert lengths.tolist() == [6, 1, 3, 0] * 2
    assert_equal(adapter, given.results["train_dpo"])
    assert list(experiment.stages.seconds) == [f"dpo_class_tokens_{round_number}"]


def test_images_stay_near_the_shots_of_their_class(make_experiment, monkeypatch):
    """Of a checkpoint without a text projection."""
    experiment = make_experiment("utilgen")
    embeds = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0], [1.0, 1.0]])
    monkeypatch.setattr(adapters, "encode_images", lambda sd, images: embeds[: len(images)])
    experiment.generator_source = dataclasses.replace(experiment.generator, checkpoint=experiment.workdir)
    assert experiment.split.real.labels.tolist() == [0, 1, 0, 1]
    monkeypatch.setattr(adapters, "image_tower_of", lambda sd: "the tower")
    tower, anchors = experiment.adapters._class_anchors("the checkpoint")
    assert tower == "the tower"
    anchors = np.asarray(anchors)
    directions = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    # Each shot counts the same, however long its embedding is.
    second = np.array([0, 1]) + np.array([1, 1]) / np.sqrt(2)
    np.testing.assert_allclose(directions, [np.array([1, 1]) / np.sqrt(2), second / np.linalg.norm(second)], rtol=1e-5)


def test_where_the_clip_distance_does_not_count_no_clip_is_read(make_experiment):
    experiment = make_experiment("utilgen", per_image__clip_weight=0, per_image__clip="nowhere")
    assert experiment.adapters._class_anchors("the checkpoint") is None


def test_images_stay_near_their_words_by_a_clip_of_its_own(make_experiment, monkeypatch):
    experiment, read = make_experiment("utilgen"), []
    towers = SimpleNamespace(
        image="the tower", embed_prompts=lambda prompts: jnp.array([[len(one), 1] for one in prompts])
    )
    monkeypatch.setattr(adapters, "find_clip", lambda name: f"folder of {name}")
    monkeypatch.setattr(adapters, "load_clip_towers", lambda folder, dtype, sharding_for: read.append(folder) or towers)
    settings = dataclasses.replace(experiment.config.section(PerImageConfig), clip="some/clip")
    sections = {**experiment.config.method_sections, "per_image": settings}
    experiment.config = dataclasses.replace(experiment.config, method_sections=sections)
    tower, anchors = experiment.adapters._class_anchors("the checkpoint")
    assert tower == "the tower" and read == ["folder of some/clip"]
    np.testing.assert_array_equal(anchors[:, 0], [len(prompt) for prompt in experiment.word_prompts])


# The results are the library's.


@pytest.mark.slow
def test_images_stay_near_their_words_where_the_checkpoint_knows_their_place(make_experiment):
    experiment = make_experiment("utilgen")
    sd = experiment.adapters.sd
    projection = load_text_projection(experiment.generator.checkpoint, sd.architecture)
    expected = embed_prompts(sd, projection, ["a photo of the digit zero", "a photo of the digit one"])
    tower, anchors = experiment.adapters._class_anchors(sd)
    assert tower.encoder is sd.image_encoder
    np.testing.assert_allclose(anchors, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def generator(make_experiment, quick_checkpoint):
    """(method, settings) -> an experiment with the quick checkpoint."""
    return lambda method, **settings: make_experiment(method, generator__checkpoint=quick_checkpoint, **settings)


def encoded(sd, images, labels, difficulties=None):
    difficulties = None if difficulties is None else jnp.asarray(difficulties)
    return replicate(DenoisingSet(encode_to_latents(sd, jnp.asarray(images)), jnp.asarray(labels), difficulties))


def key_of(use):
    return jax.random.fold_in(jax.random.key(0), use)


@pytest.mark.slow
def test_the_generator_is_the_checkpoint(generator, quick_checkpoint):
    experiment = generator("datadream", generator__dtype="bfloat16")
    sd, expected = experiment.adapters.sd, load_stable_diffusion(quick_checkpoint, jnp.bfloat16)
    assert sd.architecture == expected.architecture and sd.unet.dtype == jnp.bfloat16
    assert_equal(sd.params, expected.params)


@pytest.mark.slow
def test_a_lora_is_the_librarys(generator):
    experiment, prior = generator("datadream"), random_pool(6)
    sd, config = experiment.adapters.sd, experiment.config.section(DataDreamConfig)
    shots = encoded(sd, to_float(experiment.generator_shots), experiment.split.real.labels)
    prior_set = encoded(sd, to_float(prior.images), prior.labels)
    embeds = encode_prompts(sd, ["a photo of the digit zero", "a photo of the digit one"])
    expected = train_lora(sd, embeds, shots, prior_set, config, key_of(3), TrainingLoop())
    assert_equal(experiment.adapters.train_lora(NamedPool(), config, prior), expected)
    # Other prior images make another LoRA.
    other = experiment.adapters.train_lora(NamedPool("other"), config, random_pool(7))
    leaves = zip(jax.tree.leaves(other), jax.tree.leaves(expected), strict=True)
    assert any((a != b).any() for a, b in leaves)


@pytest.mark.slow
def test_a_difficulty_encoder_is_the_librarys(generator, monkeypatch):
    experiment, prior = generator("difficulty"), random_pool(6)
    of_shots, of_prior = np.linspace(0.2, 0.8, 4, dtype=np.float32), np.linspace(0.0, 1.0, 6, dtype=np.float32)
    sd, config = experiment.adapters.sd, experiment.config.section(DifficultyConfig)
    monkeypatch.setattr(adapters, "balanced_resample", lambda values, number, rng: np.arange(number) % 5)
    prior_set = encoded(sd, to_float(prior.images), prior.labels, of_prior).take(np.arange(24) % 5)
    shots = encoded(sd, to_float(experiment.generator_shots), experiment.split.real.labels, of_shots)
    embeds = encode_prompts(sd, experiment.word_prompts)
    expected = train_lora(sd, embeds, shots, prior_set, config, key_of(3), TrainingLoop())
    assert expected.difficulty_encoder is not None
    found = experiment.adapters.train_lora(NamedPool(), config, prior, (of_shots, of_prior))
    assert_equal(found, expected)
    assert_equal(generator("difficulty").adapters.train_lora(NamedPool(), config, prior), expected)


@pytest.mark.slow
def test_class_tokens_are_the_librarys(generator):
    experiment, prior = generator("utilgen"), random_pool(6)
    sd, config = experiment.adapters.sd, experiment.config.section(TextualInversionConfig)
    expected = train_textual_inversion(
        sd,
        ["a photo of the digit <class-0>", "a photo of the digit <class-1>"],
        initial_embeds(sd, ["zero", "one"]),
        encoded(sd, to_float(experiment.generator_shots), experiment.split.real.labels),
        encoded(sd, to_float(prior.images), prior.labels),
        config,
        key_of(5),
        TrainingLoop(),
    )
    for run in (experiment, generator("utilgen")):
        run.adapters.learn_class_tokens(prior)
        tables = flatten_dict(run.adapters.sd_with_tokens.params["text_encoder"], sep="/")
        (table,) = [table for path, table in tables.items() if path.endswith("token_embedding/embedding")]
        np.testing.assert_array_equal(table[-2:], expected)


@pytest.mark.slow
def test_dpo_is_the_librarys(generator):
    experiment = generator("utilgen")
    sd, config = experiment.adapters.sd, experiment.config.section(DpoConfig)
    pool = with_prompts(random_pool(8, round=1), ["a", "b"])
    images = encoded(sd, to_float(pool.images), pool.labels)
    weights = np.linspace(0, 1, 8)
    pairs = DpoPairs(
        latents=images.latents,
        labels=images.labels,
        prompt_embeds=encode_prompts(sd, ["a", "b"]),
        prompts=jnp.asarray(pool.labels),
        winners=jnp.array([6, 7]),
        losers=jnp.array([0, 1]),
    )
    expected = train_dpo(sd, Adapter(), replicate(pairs), config, jax.random.fold_in(key_of(6), 1), TrainingLoop())
    assert_equal(experiment.adapters.train_dpo(NamedPool(), pool, weights), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "noise", "micro_batch_size"), [(True, True, 0), (True, True, 3), (True, False, 0), (False, True, 0)]
)
def test_each_images_prompt_and_noise_are_the_librarys(generator, prompts, noise, micro_batch_size):
    experiment = generator("utilgen", per_image__micro_batch_size=micro_batch_size)
    sd, config, sampling = (
        experiment.adapters.sd,
        experiment.config.section(PerImageConfig),
        experiment.config.generator,
    )
    valuation = experiment.config.valuation
    weighting = make_weighting("loss_network", valuation, 2)
    classifiers = [init_classifier(experiment.classifier, (8, 8, 1), jax.random.key(number)) for number in range(2)]
    fold_models = {
        "classifier": jax.tree.map(lambda *parts: jnp.stack(parts), *classifiers),
        "weighting": weighting.init(jax.random.key(0)),
    }
    inputs = make_sample_inputs(sd, experiment.word_prompts * 2, [0, 1, 0, 1], range(4), sampling, rows=range(4))
    embeds = encode_images(sd, to_float(experiment.generator_shots))
    embeds = np.asarray(embeds / jnp.linalg.norm(embeds, axis=1, keepdims=True))
    anchors = np.stack([embeds[::2].sum(0), embeds[1::2].sum(0)])[[0, 1, 0, 1]]

    @jax.jit
    def by_hand(sd, fold_models, adapter, inputs):
        def utility(images, labels):
            examples = experiment.classifier_input.examples(
                images, labels, experiment.config.classifier.label_smoothing
            )
            return predict_weights(experiment.classifier, "loss_network", valuation, fold_models, examples)

        if prompts:
            similarity = partial(clip_similarity, image_tower_of(sd))
            objective = AnchoredUtility(utility, similarity, config.clip_weight)
            adapter = optimize_prompts(sd, adapter, inputs, objective, config, sampling)
        return add_golden_noise(sd, adapter, inputs, config, sampling) if noise else adapter

    anchored = dataclasses.replace(inputs, clip_anchors=jnp.asarray(anchors))
    expected = by_hand(sd, fold_models, Adapter(), anchored)
    refine = experiment.adapters.per_image(NamedPool(), fold_models if prompts else None, "loss_network", noise)
    found = refine(Adapter(), inputs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, part in vars(expected).items():
        if part is not None:
            assert np.std(part) > 1e-3
            # Adam's first step is a sign: where a gradient is nothing but rounding, it is either.
            close = np.isclose(getattr(found, name), part, rtol=1e-3, atol=1e-4)
            assert close.mean() > 0.99, name
