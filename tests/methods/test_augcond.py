from types import SimpleNamespace

import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.errors import InputError
from utilgen_jax.generator import image_conditioning
from utilgen_jax.methods import METHODS, augcond
from utilgen_jax.methods.augcond import AugcondConfig, AugcondPool


@pytest.mark.parametrize("settings", [AugcondConfig(), AugcondConfig(mix_strategy="mixup", strength=0.3)])
def test_mixed_shots_condition_images_of_the_class_prompts(settings):
    experiment = FakeExperiment(settings)
    pool = AugcondPool().build(experiment)
    plan = experiment.call("pools.plan", [["a cat"], ["a dog"]])
    mixed = experiment.call("pools.mixed_shots", plan, settings.mix_strategy)
    assert experiment.calls == [
        experiment.call("pools.class_prompts"),
        plan,
        mixed,
        experiment.call("pools.generate", AugcondPool(), plan, condition_on=mixed, strength=settings.strength),
    ]
    assert pool.made_by == experiment.calls[-1]


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["augcond"].training_data(experiment)
    assert pool.spec == AugcondPool() and AugcondPool().uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "augcond", pool)]


def test_the_strategies_of_the_config_are_those_of_the_generator():
    assert augcond.MIX_STRATEGIES == tuple(image_conditioning.MIX_STRATEGIES)


def test_embeddings_are_mixed_only_with_an_image_encoder():
    experiment = FakeExperiment(AugcondConfig(mix_strategy="embed_mixup"))
    with pytest.raises(InputError, match="has no image encoder"):
        AugcondPool().check(experiment)
    AugcondPool().check(FakeExperiment(AugcondConfig(mix_strategy="cutmix")))
    experiment.generator.architecture = SimpleNamespace(image_encoder="unCLIP's")
    AugcondPool().check(experiment)
