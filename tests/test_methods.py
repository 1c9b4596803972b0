import pytest

from utilgen_jax.config.schema import BASELINES, FIELDS
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.methods import METHODS, PUBLISHED
from utilgen_jax.valuation.cross_fit import WEIGHTINGS


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_consistent(name):
    method = METHODS[name]
    assert method.weighting == "uniform" or method.weighting in WEIGHTINGS
    assert method.generation or method.weighting == "uniform"
    assert not method.mixing or method.mixing in MIXINGS
    assert not method.augmentation or method.augmentation in FIELDS["classifier.augmentation"].choices


def test_a_pools_name_says_how_it_was_made():
    generations = {method.generation for method in METHODS.values()} - {None}
    assert len({generation.name for generation in generations}) == len(generations)
    assert {generation.name for generation in generations if not generation.uses_shots} == {"plain", "phrases"}


def test_rows_can_be_told_apart_and_baselines_and_published_systems_are_rows():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert {*BASELINES, *PUBLISHED} <= METHODS.keys()
