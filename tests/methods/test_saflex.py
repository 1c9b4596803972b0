from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.valuation.cross_fit import WEIGHTINGS


def test_plain_images_are_weighted_and_relabelled_by_saflex():
    experiment = FakeExperiment()
    _, pool, values = METHODS["saflex"].training_data(experiment)
    assert pool.spec == PlainPool() and "saflex" in WEIGHTINGS
    assert experiment.calls == [experiment.call("values.cross_fit", "saflex", pool, "saflex")]
    assert values.weights == "weights saflex"
