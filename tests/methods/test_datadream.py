from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.datadream import DataDreamPool


def test_a_lora_is_fitted_beside_plain_images_and_makes_those_of_the_class_prompts():
    prior, settings = FakePool(PlainPool()), LoraConfig(rank=7)
    experiment = FakeExperiment(settings, pools={PlainPool(): prior})
    pool = DataDreamPool().build(experiment)
    # The config is the section of this method, not that of `difficulty`, which inherits from it.
    lora = experiment.call("adapters.train_lora", DataDreamPool(), settings, prior)
    plan = experiment.call("pools.plan", [["a cat"], ["a dog"]])
    generate = experiment.call("pools.generate", DataDreamPool(), plan, lora)
    assert experiment.calls == [lora, experiment.call("pools.class_prompts"), plan, generate]
    assert pool.made_by == experiment.calls[-1] and pool.adapter == lora


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["datadream"].training_data(experiment)
    assert pool.spec == DataDreamPool() and DataDreamPool().uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "datadream", pool)]
