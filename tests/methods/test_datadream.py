from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.datadream import DataDreamConfig, DataDreamPool


def test_a_lora_is_fitted_beside_plain_images_and_makes_those_of_the_class_prompts():
    prior, settings = FakePool(PlainPool()), DataDreamConfig(rank=7)
    experiment = FakeExperiment(settings, pools={PlainPool(): prior})
    pool = DataDreamPool().build(experiment)
    lora = experiment.call("adapters.train_lora", DataDreamPool(), settings, prior)
    plan = experiment.call("pools.plan", [["a cat"], ["a dog"]])
    generate = experiment.call("pools.generate", DataDreamPool(), plan, lora)
    assert experiment.calls == [experiment.call("pools.class_prompts"), plan, lora, generate]
    assert pool.made_by == experiment.calls[-1] and pool.adapter == lora


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["datadream"].training_data(experiment)
    assert pool.spec == DataDreamPool() and DataDreamPool().uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "datadream", pool)]


def test_without_prior_images_the_generator_makes_none():
    experiment = FakeExperiment(DataDreamConfig(prior_fraction=0.0))
    DataDreamPool().build(experiment)
    assert experiment.calls[-2] == experiment.call(
        "adapters.train_lora", DataDreamPool(), DataDreamConfig(prior_fraction=0.0), None
    )
    assert "plain" not in [spec.name for spec in experiment._pools]
