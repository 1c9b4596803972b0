import pytest

from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.errors import InputError
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.difficulty import DifficultyConfig, DifficultyPool, class_means


@pytest.mark.parametrize(
    ("settings", "means"),
    [
        (DifficultyConfig(), [0.5, 0.5]),
        (DifficultyConfig(mean=0.2, by_class=("dog=0.7",), std=0.3, zero_start=True), [0.2, 0.7]),
    ],
)
def test_measured_then_trained_then_requested(settings, means):
    plain = FakePool(PlainPool())
    experiment = FakeExperiment(settings, pools={PlainPool(): plain})
    pool = DifficultyPool().build(experiment)
    measured = "difficulty of shots", "difficulty of pool"
    adapter = experiment.call("adapters.train_lora", DifficultyPool(), settings, plain, measured, settings.zero_start)
    plan = experiment.call("pools.plan", [["caption prompt"]], difficulty=(means, settings.std))
    assert experiment.calls == [
        experiment.call("classifiers.cross_fitted_difficulty", plain),
        adapter,
        experiment.call("pools.show_difficulty", DifficultyPool(), adapter),
        experiment.call("pools.caption_prompts"),
        plan,
        experiment.call("pools.generate", DifficultyPool(), plan, adapter),
    ]
    assert pool.made_by == experiment.calls[-1]


def test_the_report_gets_the_difficulties_that_were_measured():
    plain = FakePool(PlainPool())
    experiment = FakeExperiment(pools={PlainPool(): plain})
    assert DifficultyPool().findings(experiment) == experiment.call("classifiers.difficulty_findings", plain)


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["difficulty"].training_data(experiment)
    assert pool.spec == DifficultyPool() and DifficultyPool().uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "difficulty", pool)]


def test_the_means_are_in_the_order_of_the_classes():
    settings = DifficultyConfig(mean=0.4, by_class=("three=1", "one=0.25"))
    assert class_means(settings, ["one", "two", "three"]) == [0.25, 0.4, 1.0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("cta=0.5", "'cta' is none of the classes; the nearest is 'cat'"),
        ("cat=1.5", "'cat=1.5' should be such as 'cat=0.7', from 0 to 1"),
        ("cat=hard", "'cat=hard' should be such as"),
        ("cat", "'cat' should be such as"),
    ],
)
def test_a_wrong_entry_is_refused_before_anything_is_written(entry, message):
    experiment = FakeExperiment(DifficultyConfig(by_class=(entry,)))
    with pytest.raises(InputError, match=f"config.difficulty.by_class: {message}"):
        DifficultyPool().check(experiment)
    assert not experiment.calls
    DifficultyPool().check(FakeExperiment(DifficultyConfig(by_class=("cat=0.7",))))
