import pytest

from utilgen_jax.config import BASELINES
from utilgen_jax.data.batch_mixing import MIXINGS
from utilgen_jax.methods import METHODS
from utilgen_jax.valuation import WEIGHTINGS


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_consistent(name):
    method = METHODS[name]
    assert method.weighting == "uniform" or method.weighting in WEIGHTINGS
    assert method.generation or method.weighting == "uniform"
    assert not method.mixing or method.mixing in MIXINGS


def test_a_pools_name_says_how_it_was_made():
    generations = {method.generation for method in METHODS.values()} - {None}
    assert len({generation.name for generation in generations}) == len(generations)
    assert [generation.name for generation in generations if not generation.uses_shots] == ["plain"]


def test_rows_can_be_told_apart_and_baselines_are_rows():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert set(BASELINES) <= METHODS.keys()
