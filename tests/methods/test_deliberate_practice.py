import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.deliberate_practice import DeliberatePracticeConfig, DeliberatePracticePool, growth


def test_each_round_practises_on_the_pool_so_far_and_adds_what_the_classifier_is_unsure_of():
    settings = DeliberatePracticeConfig(rounds=2, scale=0.1, check_every=5, patience=4)
    experiment, spec = FakeExperiment(settings), DeliberatePracticePool()
    pool = spec.build(experiment)
    prompts, plan, first, practice, led, second, again, led_again, last = experiment.calls
    assert prompts == experiment.call("pools.class_prompts")
    assert plan == experiment.call("pools.plan_rounds", [["a cat"], ["a dog"]], growth(settings))
    assert [call.arguments["records"].step for call in (first, second, last)] == ["round 0", "round 1", "round 2"]
    assert first.arguments["condition_on"] is None  # plain images
    assert practice.arguments["pool"].made_by == first and practice.arguments["start"] is None
    # The classifier goes on from where it was, on the pool that it has led.
    assert again.arguments["pool"].made_by == second and again.arguments["start"] == practice
    assert (led, led_again) == tuple(experiment.call("pools.led_by", params, 0.1, 0) for params in (practice, again))
    assert [call.arguments["condition_on"] for call in (second, last)] == [led, led_again]
    assert (practice.arguments["check_every"], practice.arguments["patience"]) == (5, 4)
    assert pool.made_by == last


@pytest.mark.parametrize(
    ("rounds", "fractions"), [(1, [0.25, 1.0]), (2, [0.25, 0.625, 1.0]), (3, [0.25, 0.5, 0.75, 1.0])]
)
def test_the_pool_grows_by_equal_parts(rounds, fractions):
    assert growth(DeliberatePracticeConfig(rounds=rounds)) == pytest.approx(fractions)


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["deliberate_practice"].training_data(experiment)
    assert pool.spec == DeliberatePracticePool() and pool.spec.uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "deliberate_practice", pool)]
