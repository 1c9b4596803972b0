import ast
import inspect

import pytest

from tests.methods.fake_experiment import PARTS, FakeExperiment
from utilgen_jax import methods

CLASSES = {
    "pools": "PoolSteps",
    "adapters": "AdapterSteps",
    "values": "ValueSteps",
    "classifiers": "ClassifierSteps",
    "joint": "JointSteps",
}


@pytest.mark.parametrize("kind", PARTS)
def test_the_fake_has_the_parameters_of_the_real_steps(kind):
    # Read as text: the modules import the whole generator.
    root = methods.__path__[0].removesuffix("methods")
    with open(f"{root}experiment/{kind}.py") as file:
        (steps,) = [
            node
            for node in ast.parse(file.read()).body
            if isinstance(node, ast.ClassDef) and node.name == CLASSES[kind]
        ]
    real = {node.name: node.args for node in steps.body if isinstance(node, ast.FunctionDef)}
    for name, function in PARTS[kind].items():
        expected, found = real[name], inspect.signature(function).parameters
        positional = [argument.arg for argument in expected.args if argument.arg != "self"]
        assert list(found) == positional + [argument.arg for argument in expected.kwonlyargs]
        defaults = dict(zip(reversed(positional), reversed(expected.defaults), strict=False))
        defaults |= dict(zip([argument.arg for argument in expected.kwonlyargs], expected.kw_defaults, strict=True))
        given = {key: each.default for key, each in found.items() if each.default is not each.empty}
        assert given == {key: ast.literal_eval(default) for key, default in defaults.items()}


def test_calls_are_recorded_in_order_however_arguments_are_given():
    experiment = FakeExperiment()
    plan = experiment.pools.plan([["a"]], round_number=2)
    pool = experiment.pools.generate("spec", plan, adapter="adapter")
    assert experiment.steps == ["pools.plan", "pools.generate"]
    assert plan == experiment.call("pools.plan", prompts=[["a"]], round_number=2, difficulty=None)
    assert plan != experiment.call("pools.plan", [["a"]])
    assert (pool.spec, pool.adapter, pool.round) == ("spec", "adapter", 2)
