from types import SimpleNamespace

import pytest

from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.errors import InputError
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.difficulty import DifficultyPool
from utilgen_jax.methods.joint import Joint, JointPool
from utilgen_jax.prompts.config import PromptConfig

PLAIN = FakePool(PlainPool())


def with_gate(experiment, is_open):
    experiment.joint.functions["gate"] = lambda spec, plain, trained: SimpleNamespace(is_open=is_open)
    return experiment


def steps_of_training(experiment, spec, start=None):
    return experiment.call("joint.train", spec, PLAIN, start, spec.without)


def test_what_the_update_trained_makes_the_images_where_the_gate_is_open():
    spec, experiment = JointPool(), FakeExperiment()
    pool = spec.build(experiment)
    train, gate, prompts, plan, generate = experiment.calls
    assert train == steps_of_training(experiment, spec)
    assert gate.step == "joint.gate" and gate.arguments["trained"].call == train
    assert prompts == experiment.call("pools.attribute_prompts", "logits")
    assert plan == experiment.call("pools.plan", prompts, difficulty=([0.3, 0.6], 0.0))
    assert generate == experiment.call("pools.generate", spec, plan, "the trained adapter")
    assert pool.made_by == generate


def test_a_closed_gate_leaves_the_plain_images():
    spec, experiment = JointPool(), with_gate(FakeExperiment(), is_open=False)
    pool = spec.build(experiment)
    assert experiment.steps == ["joint.train", "joint.gate", "pools.adopt"]
    assert experiment.calls[-1] == experiment.call("pools.adopt", spec, PLAIN)
    assert pool.made_by == experiment.calls[-1] and pool.adapter == PLAIN.adapter


@pytest.mark.parametrize(
    ("spec", "config"), [(JointPool(("gate",)), JointConfig()), (JointPool(), JointConfig(gate_images=0))]
)
def test_without_a_gate_the_adapter_is_always_used(spec, config):
    experiment = with_gate(FakeExperiment(config), is_open=False)
    spec.build(experiment)
    assert experiment.steps == ["joint.train", "pools.attribute_prompts", "pools.plan", "pools.generate"]


@pytest.mark.parametrize("images", [0, 5])
def test_the_report_gets_what_the_update_and_the_gate_found(images):
    experiment = FakeExperiment(JointConfig(gate_images=images))
    found = JointPool().findings(experiment)
    train, findings = experiment.calls
    assert found == findings and findings.step == "joint.findings" and findings.arguments["trained"].call == train
    assert findings.arguments["plain"] == PLAIN and findings.arguments["has_gate"] == (images > 0)


def test_the_adapter_can_start_from_difficultys():
    experiment = FakeExperiment(JointConfig(start="difficulty"))
    JointPool().train(experiment)
    assert experiment.steps == ["classifiers.cross_fitted_difficulty", "adapters.train_lora", "joint.train"]
    lora = experiment.calls[1]
    assert lora.arguments["spec"] == DifficultyPool()
    assert experiment.calls[2] == steps_of_training(experiment, JointPool(), lora)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
def test_weights_are_the_networks_and_labels_the_ensembles(weights, ensemble):
    experiment, spec = FakeExperiment(), JointPool(("lora",))
    method = Joint("name", "title", spec, ensemble=ensemble, weights=weights)
    _, pool, values = method.training_data(experiment)
    labelled = [experiment.call("values.ensemble_labels", spec, pool)] if ensemble else []
    if weights:
        train, value, *rest = experiment.calls
        assert train == steps_of_training(experiment, spec) and rest == labelled
        assert value.step == "joint.value" and value.arguments["trained"].call == train
        assert (value.arguments["name"], value.arguments["pool"], value.arguments["without"]) == (
            "name",
            pool,
            ("lora",),
        )
    else:
        assert experiment.calls == [experiment.call("values.uniform", "name", pool), *labelled]
    assert values.weights == "weights name" and values.losses == "losses name"
    assert values.soft_labels == ("soft labels of joint_without_lora" if ensemble else None)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize(("ensemble", "teachers"), [(True, True), (True, False), (False, True)])
def test_the_ensembles_teach_the_final_classifiers(ensemble, teachers, fraction):
    experiment = FakeExperiment(classifier=ClassifierConfig(synthetic_fraction=fraction))
    method = Joint("name", "title", JointPool(), ensemble=ensemble, teachers=teachers)
    data = SimpleNamespace(synthetic="the images", pool=FakePool(JointPool()))
    params, found = method.train(experiment, data)
    only = method.train_on_synthetic(experiment, data)
    everyone = "all members of joint" if ensemble and teachers else None
    beside_real = everyone and "members of joint"
    taught_by = everyone if fraction == 1 else beside_real
    assert found is data and params == experiment.call("classifiers.train", method, "the images", taught_by)
    assert only == experiment.call("classifiers.train_on_synthetic", method, "the images", everyone)


def test_the_default_is_the_whole():
    method = METHODS["joint"]
    assert (method.pool, method.weights, method.ensemble, method.teachers) == (JointPool(), True, True, True)
    assert JointPool().uses_shots and JointPool().attributes and not JointPool().class_tokens


def test_attributes_are_checked_before_anything_is_written():
    experiment = FakeExperiment(prompts=PromptConfig(attributes=("thin|thin",)))
    with pytest.raises(InputError, match="thin"):
        JointPool().check(experiment)
    assert not experiment.calls
    JointPool().check(FakeExperiment())


def test_an_image_encoders_features_need_one():
    experiment = FakeExperiment(JointConfig(coverage_features=("classifier", "image_encoder")))
    with pytest.raises(InputError, match="joint.coverage_features=classifier,image_encoder: .* no image_encoder"):
        JointPool().check(experiment)
    experiment.generator.architecture = SimpleNamespace(image_encoder="unCLIP's")
    JointPool().check(experiment)


def test_the_classifiers_of_the_update_are_tested_too():
    experiment = FakeExperiment()
    assert METHODS["joint"].accuracy_of_update(experiment) == 0.875
    assert experiment.steps == ["joint.train", "joint.accuracy"]
    for name in ("vanilla", "vanilla_ensemble"):
        assert METHODS[name].accuracy_of_update(experiment) is None


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
def test_other_images_are_valued_by_the_network_and_the_ensembles_of_the_run(weights, ensemble):
    experiment, spec, others = FakeExperiment(), JointPool(), FakePool(JointPool())
    method = Joint("name", "title", spec, ensemble=ensemble, weights=weights)
    values = method.predict_values(experiment, others)
    assert values.weights == ("by the network" if weights else "uniform weights") and method.has_weights == weights
    assert values.soft_labels == ("predicted as soft labels of joint" if ensemble else None)
    assert method.has_soft_labels == ensemble
    # The ensembles are those of the run's pool.
    labelled = [call for call in experiment.calls if call.step == "values.ensemble_labels"]
    assert all(call.arguments["pool"] is not others for call in labelled)
