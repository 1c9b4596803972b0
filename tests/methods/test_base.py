import dataclasses
from types import SimpleNamespace

import pytest

from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.methods.base import Method, PoolSpec


@dataclasses.dataclass(frozen=True)
class Spec(PoolSpec):
    flag: bool = True

    @property
    def name(self):
        return f"spec_{self.flag}"


def test_a_method_without_a_pool_trains_on_real_images_only():
    experiment = FakeExperiment()
    assert Method("real", "real images only").training_data(experiment) == "real only"
    assert not experiment.calls


def test_a_method_trains_on_its_pool_whose_images_count_the_same():
    pool = FakePool(Spec())
    experiment = FakeExperiment(pools={Spec(): pool})
    kind, found, values = Method("name", "title", Spec()).training_data(experiment)
    assert kind == "training data" and found is pool
    assert experiment.calls == [experiment.call("values.uniform", "name", pool)]
    assert values.weights == "weights name"


def test_other_images_than_the_runs_count_the_same_too():
    experiment, method, others = FakeExperiment(), Method("name", "title", Spec()), FakePool(Spec())
    assert method.predict_values(experiment, others).weights == "uniform weights"
    assert experiment.steps == ["values.predict_uniform"]
    assert not method.has_weights and not method.has_soft_labels


def test_a_method_may_value_its_pool_itself():
    class Valued(Method):
        def value(self, experiment, pool):
            return experiment.values.cross_fit(self.name, pool, "loss_network")

    experiment = FakeExperiment()
    _, pool, _ = Valued("name", "title", Spec()).training_data(experiment)
    assert experiment.calls == [experiment.call("values.cross_fit", "name", pool, "loss_network")]


def test_a_method_trains_its_classifier_as_all_do_unless_it_says_how():
    experiment, method = FakeExperiment(), Method("name", "title", Spec())
    data = SimpleNamespace(synthetic="images")
    params, found = method.train(experiment, data)
    assert found is data and experiment.calls == [params]
    assert params == experiment.call("classifiers.train", method, "images")
    alone = method.train_on_synthetic(experiment, data)
    assert alone == experiment.call("classifiers.train_on_synthetic", method, "images")


def test_specs_are_equal_where_their_flags_are():
    assert Spec() == Spec(flag=True) and hash(Spec()) == hash(Spec(flag=True))
    assert Spec() != Spec(flag=False)


def test_a_pool_is_of_shots_without_tokens_or_attributes_unless_stated():
    spec = PoolSpec()
    assert spec.uses_shots and not spec.class_tokens and not spec.attributes
    assert spec.check(FakeExperiment()) is None
    with pytest.raises(NotImplementedError):
        _ = spec.name
    with pytest.raises(NotImplementedError):
        spec.build(FakeExperiment())
