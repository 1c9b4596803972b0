"""Several words of a class: in prompts, records and examples, and how they are chosen."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiment.conftest import NamedPool, random_pool, with_fake_sd
from utilgen_jax.experiment import words as words_module
from utilgen_jax.experiment.experiment import SharedDirs
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.words import WordPool
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.prompts.captions import captioning
from utilgen_jax.prompts.words import deal
from utilgen_jax.valuation.cross_fit import PoolValues

# Ten classes in the data set, of which the first two are used.
WORDS = {"data__class_names": ",".join(["zero|eight", "one|seven|l", *(f"other {n}" for n in range(8))])}
TEMPLATE = {"prompts__template": "a {class}"}


@pytest.fixture
def experiment(make_experiment):
    return make_experiment(**WORDS, **TEMPLATE, pool__images_per_class=6)


def words_of(records, label):
    return [record.word for record in records if record.label == label]


def test_words_are_in_prompts_and_not_in_names(experiment):
    assert experiment.words.of_class == (("zero", "eight"), ("one", "seven", "l"))
    assert experiment.word_prompts == ["a zero", "a eight", "a one", "a seven", "a l"]
    assert experiment.split.real.class_names == ("zero", "one")


def test_the_words_of_a_class_are_equally_frequent_and_noted(experiment):
    records = experiment.pools.plan(experiment.pools.class_prompts())
    assert sorted(words_of(records, 0)) == ["eight"] * 3 + ["zero"] * 3
    assert sorted(words_of(records, 1)) == ["l"] * 2 + ["one"] * 2 + ["seven"] * 2
    assert all(record.prompt == f"a {record.word}" for record in records)
    # The order is the seed's.
    order = deal(np.array([0.5, 0.5]), 6, np.random.default_rng([0, Key.WORDS, 0]))
    assert words_of(records, 0) == [("zero", "eight")[place] for place in order]
    assert experiment.pools.plan(experiment.pools.class_prompts()) == records


def test_of_words_that_begin_another_the_whole_word_is_noted(make_experiment):
    names = ",".join(["crane|crane bird", *(f"other {n}" for n in range(9))])
    experiment = make_experiment(data__class_names=names, **TEMPLATE)
    records = experiment.pools.plan([["a crane", "a crane bird, on a rock", "<class-0>"], ["a other 0"]])
    assert words_of(records, 0) == ["crane", "crane bird", None, "crane"]
    # A class of one word has none to note.
    assert words_of(records, 1) == [None] * 4


def test_without_several_words_records_are_as_ever(make_experiment):
    experiment = make_experiment()
    records = experiment.pools.plan(experiment.pools.class_prompts())
    assert experiment.pools.class_prompts() == [["a photo of the digit zero"], ["a photo of the digit one"]]
    assert {record.word for record in records} == {None}
    assert experiment.examples(random_pool(3)).attributes is None


def test_each_word_goes_with_the_captions_in_turn(experiment, monkeypatch):
    monkeypatch.setattr(captioning, "make_captioner", lambda source: lambda images, names: [*names])
    real = experiment.split.real
    texts = iter("pqrs")
    monkeypatch.setattr(captioning, "one_line", lambda text: next(texts))
    of_class = [[text for text, label in zip("pqrs", real.labels, strict=True) if label == other] for other in (0, 1)]
    records = experiment.pools.plan(experiment.pools.caption_prompts())
    for label, captions in enumerate(of_class):
        for word in set(words_of(records, label)):
            prompts = [record.prompt for record in records if (record.label, record.word) == (label, word)]
            assert prompts == [f"a {word}, {captions[n % 2]}" for n in range(len(prompts))]


def test_learnt_tokens_have_no_word(experiment):
    records = experiment.pools.plan(experiment.pools.class_token_prompts())
    assert {record.word for record in records} == {None}


def test_attributes_and_words_are_drawn_independently(make_experiment):
    settings = {"pool__images_per_class": 400, "prompts__attribute_probability": 0.5}
    settings |= {"prompts__attributes": "thin|bold,small|large|huge"}
    experiment = make_experiment(**WORDS, **settings)
    records = experiment.pools.plan(experiment.pools.attribute_prompts())
    assert np.mean([word == "eight" for word in words_of(records, 0)]) == 0.5
    for word in ("zero", "eight"):
        bold = ["bold" in record.prompt for record in records if record.word == word]
        assert 0.15 < np.mean(bold) < 0.35
    # absent, thin, bold; absent, small, large, huge; then zero, eight, one, seven, l
    logits = np.log([1.0] * 7 + [1, 3, 2, 1, 1])
    records = experiment.pools.plan(experiment.pools.attribute_prompts(logits=logits))
    shares = {word: words_of(records, label).count(word) / 400 for label, word in ((0, "eight"), (1, "one"), (1, "l"))}
    assert shares == {"eight": 0.75, "one": 0.5, "l": 0.25}


def pool_of(words, spec=None, **fields):
    """A pool, the two classes in turn, of these words."""
    pool = random_pool(len(words), spec, **fields)
    names = ("zero", "one")
    records = tuple(
        dataclasses.replace(record, word=word, class_name=names[record.label])
        for record, word in zip(pool.records, words, strict=True)
    )
    return dataclasses.replace(pool, pool=dataclasses.replace(pool.pool, records=records))


def test_a_weighting_sees_the_word(make_experiment):
    experiment = make_experiment(**WORDS, prompts__attributes="thin|bold")
    words = ["eight", "l", "zero", "one"]
    of_words = [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(experiment.examples(pool_of(words)).attributes, of_words)
    # After the attributes, of which these prompts hold none.
    both = experiment.examples(pool_of(words, NamedPool(holds_attributes=True))).attributes
    np.testing.assert_array_equal(both, [[1, 0, 0, *row] for row in of_words])
    assert experiment.examples(pool_of([None] * 4)).attributes is None


def test_what_is_found_of_each_word(experiment):
    words = ["eight", "l", "zero", "one", "eight", "one"]
    soft = np.array([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.0, 1.0], [0.4, 0.6], [0.5, 0.5]])
    values = PoolValues(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), soft_labels=soft)
    rows = experiment.word_choice.table(pool_of(words), values)
    assert rows == [
        {"class": "zero", "word": "zero", "images": 1, "weight": 0.3, "label_probability": 0.9},
        {"class": "zero", "word": "eight", "images": 2, "weight": 0.3, "label_probability": 0.3},
        {"class": "one", "word": "one", "images": 2, "weight": 0.5, "label_probability": 0.75},
        {"class": "one", "word": "seven", "images": 0, "weight": None, "label_probability": None},
        {"class": "one", "word": "l", "images": 1, "weight": 0.2, "label_probability": 0.4},
    ]


# Choosing


CHOOSE = {**WORDS, **TEMPLATE, "prompts__choose_words": "True", "prompts__images_per_word": 3, "ensemble__members": 2}


@pytest.fixture
def predicted(monkeypatch):
    """The calls of the ensemble, which takes images of 'zero' and 'l' for their class and 'one' for both."""
    calls = []

    def predict(classifier, config, real, images, keys, loop):
        calls.append((config, real, len(keys)))
        # Classes in turn, the words of each in turn, as far as a class has any left: 6 images of zero, 9 of one.
        own = {0: [0.9, 0.2], 1: [0.5, 0.1, 0.7]}
        labels = [0, 1] * 6 + [1] * 3
        places = [n // 2 for n in range(12)] + [6, 7, 8]
        values = np.array([own[k][n % len(own[k])] for k, n in zip(labels, places, strict=True)])
        return np.where(np.array(labels)[:, None] == [0, 1], values[:, None], 1 - values[:, None])

    monkeypatch.setattr(words_module, "predict_by_ensemble", predict)
    return calls


def test_a_small_pool_of_every_word_is_valued_by_the_shots(make_experiment, generated, predicted):
    experiment = with_fake_sd(make_experiment(**CHOOSE, pool__images_per_class=8))
    records = experiment.pools.plan(experiment.pools.class_prompts())
    ((config, real, members),) = predicted
    assert config == experiment.classifier_config and real is experiment.real and members == 2
    pool = experiment.pool(WordPool())
    assert words_of(pool.records, 0) == ["zero", "eight"] * 3 and words_of(pool.records, 1) == ["one", "seven", "l"] * 3
    found = experiment.word_choice.chosen(pool)
    np.testing.assert_allclose(found["values"], [0.9, 0.2, 0.5, 0.1, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found["probabilities"], [1, 0, 0.4, 0, 0.6], rtol=1e-6)
    # 8 prompts in these proportions, as far as whole ones go.
    assert words_of(records, 0) == ["zero"] * 8 and sorted(words_of(records, 1)) == ["l"] * 5 + ["one"] * 3
    assert experiment.word_choice.likeliest().tolist() == [0, 4]
    assert {"pool_words", "words"} <= set(experiment.stages.seconds)
    # The next run reads both; the report shows values and shares, those of words that no image has too.
    again = with_fake_sd(make_experiment(**CHOOSE, pool__images_per_class=8))
    assert again.pools.plan(again.pools.class_prompts()) == records and len(predicted) == len(generated) == 1
    rows = again.word_choice.table(pool_of(["zero", "l"]), PoolValues(np.ones(2)))
    assert [(row["word"], row["images"], row["value"], row["share"]) for row in rows] == [
        ("zero", 1, 0.9, 1.0),
        ("eight", 0, 0.2, 0.0),
        ("one", 0, 0.5, 0.4),
        ("seven", 0, 0.1, 0.0),
        ("l", 1, 0.7, 0.6),
    ]


def test_words_are_not_chosen_where_each_class_has_one(make_experiment, generated, predicted):
    experiment = make_experiment(prompts__choose_words="True")
    assert not experiment.word_choice.is_needed
    assert experiment.pools.class_prompts() == [["a photo of the digit zero"], ["a photo of the digit one"]]
    assert not generated and not predicted and not experiment.stages.seconds


def test_a_pool_of_chosen_words_is_of_the_shots(make_experiment, tmp_path):
    shared = SharedDirs(tmp_path / "stages", tmp_path / "pools", tmp_path / "shotless")
    chosen = make_experiment(**CHOOSE, shared=shared)
    assert chosen.shotless_folder(PlainPool()) is None
    assert chosen.pool_folder(PlainPool()).is_relative_to(tmp_path / "pools")
    assert chosen.shotless_folder(WordPool()) == tmp_path / "shotless"
    even = make_experiment(**WORDS, shared=shared, workdir=tmp_path / "even")
    assert even.shotless_folder(PlainPool()) == tmp_path / "shotless"


def test_what_is_learnt_of_a_class_as_a_whole_starts_from_its_words_by_their_probabilities(
    make_experiment,
    tmp_path,
    generated,
    predicted,
):
    embeds = jnp.arange(10.0).reshape(5, 2)
    even = make_experiment(**WORDS, workdir=tmp_path / "even").word_choice
    np.testing.assert_allclose(even.class_means(embeds), [[1, 2], [6, 7]], rtol=1e-6)
    chosen = with_fake_sd(make_experiment(**CHOOSE, workdir=tmp_path / "chosen")).word_choice
    np.testing.assert_allclose(chosen.class_means(embeds), [[0, 1], [6.4, 7.4]], rtol=1e-6)
    single = make_experiment(workdir=tmp_path / "single").word_choice
    assert single.class_means(embeds) is embeds
