import pytest

from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.errors import InputError
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.joint import WEIGHTING, Joint, JointPool
from utilgen_jax.prompts.config import PromptConfig
from utilgen_jax.valuation.cross_fit import WEIGHTINGS


@pytest.mark.parametrize(("oversample", "factor"), [(False, 1), (True, 3)])
def test_images_are_of_prompts_with_drawn_attributes(oversample, factor):
    spec = JointPool(oversample=oversample)
    experiment = FakeExperiment(JointConfig(oversampling=3))
    pool = spec.build(experiment)
    prompts = experiment.call("pools.attribute_prompts", factor)
    plan = experiment.call("pools.plan", prompts, oversampling=factor)
    assert experiment.calls == [prompts, plan, experiment.call("pools.generate", spec, plan)]
    assert pool.made_by == experiment.calls[-1]


@pytest.mark.parametrize("lora", [False, True])
def test_the_bilevel_update_trains_on_a_first_pool_what_makes_the_second(lora):
    spec, first = JointPool(train_attributes=True, train_lora=lora), FakePool(JointPool(), round=4)
    experiment = FakeExperiment(pools={JointPool(): first})
    pool = spec.build(experiment)
    trained = experiment.call("adapters.train_jointly", spec, first, lora)
    prompts = experiment.call("pools.attribute_prompts", 1, 5, "logits")
    plan = experiment.call("pools.plan", prompts, 5)
    assert experiment.calls == [trained, prompts, plan, experiment.call("pools.generate", spec, plan, trained)]
    assert pool.made_by == experiment.calls[-1] and (pool.adapter, pool.round) == (trained, 5)


def test_the_least_sure_images_are_selected_with_their_ensemble_labels():
    spec, many = JointPool(select="uncertain"), FakePool(JointPool(oversample=True))
    experiment = FakeExperiment(pools={many.spec: many})
    pool = spec.build(experiment)
    labels = "ensemble labels of joint_oversampled for joint_uncertain"
    entropy = experiment.call("values.entropy", labels)
    assert experiment.calls == [
        experiment.call("values.ensemble_labels", spec, many),
        entropy,
        experiment.call("pools.select", spec, many, entropy, labels),
    ]
    assert pool.made_by == experiment.calls[-1]


def test_the_most_useful_images_are_selected_by_their_weights():
    spec, many = JointPool(select="useful"), FakePool(JointPool(oversample=True), round=2)
    experiment = FakeExperiment(pools={many.spec: many})
    pool = spec.build(experiment)
    assert experiment.calls == [
        experiment.call("values.cross_fit", "joint_useful_2", many, WEIGHTING),
        experiment.call("pools.select", spec, many, "weights joint_useful_2"),
    ]
    assert pool.made_by == experiment.calls[-1] and pool.soft_labels is None


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
def test_weights_and_labels_are_learnt_where_requested(weights, ensemble):
    experiment = FakeExperiment()
    method = Joint("name", "title", JointPool(), ensemble=ensemble, weights=weights)
    _, pool, values = method.training_data(experiment)
    valued = (
        experiment.call("values.cross_fit", "name", pool, "feature_network")
        if weights
        else experiment.call("values.uniform", "name", pool)
    )
    labelled = [experiment.call("values.ensemble_labels", JointPool(), pool)] if ensemble else []
    assert experiment.calls == [valued, *labelled]
    assert values.weights == "weights name" and values.losses == "losses name"
    assert values.soft_labels == ("ensemble labels of joint for joint" if ensemble else None)


@pytest.mark.parametrize("ensemble", [False, True])
def test_labels_that_a_selection_made_are_not_made_again(ensemble):
    spec = JointPool(select="uncertain")
    experiment = FakeExperiment(pools={spec: FakePool(spec, soft_labels="selected labels")})
    _, pool, values = Joint("name", "title", spec, ensemble=ensemble).training_data(experiment)
    assert experiment.calls == [experiment.call("values.uniform", "name", pool)]
    assert values.soft_labels == ("selected labels" if ensemble else None)


def test_joint_is_attributes_and_ensemble_labels_of_weight_1():
    experiment = FakeExperiment(build=True)
    _, pool, values = METHODS["joint"].training_data(experiment)
    assert experiment.steps == [
        *("pools.attribute_prompts", "pools.plan", "pools.generate"),
        *("values.uniform", "values.ensemble_labels"),
    ]
    assert pool.spec == JointPool() and values.soft_labels == "ensemble labels of joint for joint"
    assert WEIGHTING == "feature_network" and WEIGHTING in WEIGHTINGS


def test_shots_have_a_part_in_what_is_trained_or_selected():
    assert not JointPool().uses_shots and not JointPool(oversample=True).uses_shots
    for flags in ({"train_attributes": True}, {"train_lora": True}, {"select": "useful"}, {"select": "uncertain"}):
        spec = JointPool(**flags)
        assert spec.uses_shots and spec.attributes and not spec.class_tokens


def test_attributes_are_checked_before_anything_is_written():
    experiment = FakeExperiment(prompts=PromptConfig(attributes=("thin|thin",)))
    with pytest.raises(InputError, match="thin"):
        JointPool().check(experiment)
    assert not experiment.calls
    JointPool().check(FakeExperiment())
