import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.joint.program import LEVELS, REGULARIZERS
from utilgen_jax.methods import ABLATIONS, METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.joint import Joint, JointPool
from utilgen_jax.methods.utilgen import UtilGen, UtilGenPool


def test_ablations_name_methods_end_with_their_own_and_have_no_method_twice():
    for methods in ABLATIONS.values():
        assert set(methods) <= METHODS.keys() and len(set(methods)) == len(methods)
        assert methods[0] == "vanilla"
    for name, methods in ABLATIONS.items():
        assert name in methods
    assert ABLATIONS["utilgen"][-1] == "utilgen"


def test_methods_that_comparisons_leave_out_stand_in_an_ablation():
    shown = {name for methods in ABLATIONS.values() for name in methods}
    assert {name for name, method in METHODS.items() if method.only_in_ablations} <= shown


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("utilgen_none", (False, False, False)),
        ("utilgen_model", (True, False, False)),
        ("utilgen_prompt", (False, True, False)),
        ("utilgen_noise", (False, False, True)),
        ("utilgen", (True, True, True)),
    ],
)
def test_the_parts_of_utilgen_are_valued_as_the_whole(name, flags):
    method = METHODS[name]
    assert isinstance(method, UtilGen) and method.pool == UtilGenPool(*flags)
    experiment = FakeExperiment()
    _, pool, _ = method.training_data(experiment)
    assert experiment.calls == [experiment.call("values.cross_fit", name, pool, "loss_network")]


@pytest.mark.parametrize(
    ("name", "pool", "ensemble", "weights"),
    [
        ("vanilla_ensemble", PlainPool(), True, False),
        ("joint", JointPool(), True, True),
        ("joint_without_labels", JointPool(), False, True),
        ("joint_without_teachers", JointPool(), True, True),
        ("joint_without_weights", JointPool(("weights",)), True, False),
        *((f"joint_without_{part}", JointPool((part,)), True, True) for part in (*LEVELS[1:], *REGULARIZERS, "gate")),
    ],
)
def test_the_parts_of_joint(name, pool, ensemble, weights):
    method = METHODS[name]
    assert isinstance(method, Joint) and name in ABLATIONS["joint"]
    assert (method.pool, method.ensemble, method.weights) == (pool, ensemble, weights)
    assert method.teachers == (name != "joint_without_teachers")
