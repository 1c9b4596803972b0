import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool


def test_plain_images_are_of_the_class_prompts_by_the_checkpoint_alone():
    experiment = FakeExperiment()
    pool = PlainPool().build(experiment)
    plan = experiment.call("pools.plan", [["a cat"], ["a dog"]])
    assert experiment.calls == [
        experiment.call("pools.class_prompts"),
        plan,
        experiment.call("pools.generate", PlainPool(), plan),
    ]
    assert pool.made_by == experiment.calls[-1]
    assert (PlainPool().name, PlainPool().uses_shots) == ("plain", False)


@pytest.mark.parametrize(
    ("name", "augmentation", "mixing"),
    [("real", "", ""), ("randaugment", "randaugment", ""), ("mixup", "", "mixup"), ("cutmix", "", "cutmix")],
)
def test_augmentations_of_real_images(name, augmentation, mixing):
    method = METHODS[name]
    assert (method.pool, method.augmentation, method.mixing) == (None, augmentation, mixing)
    assert method.training_data(FakeExperiment()) == "real only"


def test_vanilla_trains_on_plain_images_that_count_the_same():
    experiment = FakeExperiment()
    _, pool, values = METHODS["vanilla"].training_data(experiment)
    assert pool.spec == PlainPool() and values.weights == "weights vanilla"
    assert experiment.calls == [experiment.call("values.uniform", "vanilla", pool)]
