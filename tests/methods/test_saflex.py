import dataclasses
from types import SimpleNamespace
from typing import Any

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool


@dataclasses.dataclass(frozen=True)
class Data:
    synthetic: Any
    values: Any


def test_plain_images_are_weighed_and_relabelled_while_the_classifier_trains():
    experiment, method = FakeExperiment(), METHODS["saflex"]
    _, pool, values = method.training_data(experiment)
    assert pool.spec == PlainPool()
    assert experiment.calls == [experiment.call("values.uniform", "saflex", pool)]
    params, data = method.train(experiment, Data("images", values))
    assert experiment.calls[1:] == [params] == [experiment.call("classifiers.train_saflex", method, "images")]
    assert data.synthetic == "images"
    expected = {"weights": "weights in training", "soft_labels": "labels in training"}
    assert data.values == dataclasses.replace(values, **expected)


def test_on_synthetic_images_alone_it_starts_again_from_the_labels_as_they_came():
    experiment, method = FakeExperiment(), METHODS["saflex"]
    params = method.train_on_synthetic(experiment, SimpleNamespace(synthetic="images", values="values"))
    assert params == experiment.call("classifiers.train_saflex_on_synthetic", method, "images")
