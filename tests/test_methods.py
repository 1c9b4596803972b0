import pytest

from utilgen_jax.config import BASELINES
from utilgen_jax.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_consistent(name):
    method = METHODS[name]
    assert method.weighting in ("uniform", "weight_network")
    assert method.synthetic or method.weighting == "uniform"


def test_rows_can_be_told_apart_and_baselines_are_rows():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert set(BASELINES) <= METHODS.keys()
