"""The registry: what all methods have in common."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax import methods
from utilgen_jax.config.schema import ALL_SECTIONS, BASELINES, FIELDS, METHODS, Config
from utilgen_jax.data.augment.batch_mixing import MIXINGS
from utilgen_jax.fields import section_fields
from utilgen_jax.methods import ABLATIONS, PUBLISHED, SECTIONS
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.valuation.cross_fit import WEIGHTINGS

FOLDER = Path(methods.__file__).parent
FILES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "base"))
ALL = [method for name in FILES for method in getattr(methods, name).METHODS]
SPECS = list(dict.fromkeys(method.pool for method in ALL if method.pool is not None))


def test_names_and_titles_are_unique():
    assert len({method.name for method in ALL}) == len({method.title for method in ALL}) == len(ALL)
    # No file is forgotten, and a method's key is its name.
    assert {method.name: method for method in ALL} == dict(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_consistent(name):
    method = METHODS[name]
    assert isinstance(method, Method) and isinstance(method.pool, PoolSpec | None)
    assert not method.mixing or method.mixing in MIXINGS
    assert not method.augmentation or method.augmentation in FIELDS["classifier.augmentation"].choices
    assert not (method.published and method.only_in_ablations)
    experiment = FakeExperiment(build=True)
    data = method.training_data(experiment)
    assert (data == "real only") == (method.pool is None)
    assert {call.arguments["weighting"] for call in experiment.calls if "weighting" in call.arguments} <= set(
        WEIGHTINGS
    )
    # Stages are named by these arguments: no two steps of a run that differ may share one.
    named = [
        (call.step, call.arguments["name"])
        for call in experiment.calls
        if call.step in ("values.cross_fit", "values.uniform", "joint.value")
    ]
    assert len({name for _, name in named}) == len(named)
    generated = [
        (call.arguments["spec"].name, call.arguments["records"].arguments["round_number"])
        for call in experiment.calls
        if call.step == "pools.generate"
    ]
    assert len(set(generated)) == len(generated)


def test_stages_of_different_methods_do_not_share_a_name():
    # A comparison keeps them in one folder.
    stages = {}
    for method in ALL:
        experiment = FakeExperiment(build=True)
        method.training_data(experiment)
        for call in experiment.calls:
            if call.step in ("values.cross_fit", "values.uniform", "joint.value"):
                stages.setdefault(call.arguments["name"], []).append(call)
    for name, calls in stages.items():
        assert all(call == calls[0] for call in calls), name


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_spec_is_a_frozen_value(spec):
    assert hash(spec) == hash(dataclasses.replace(spec)) and spec == dataclasses.replace(spec)
    for field in dataclasses.fields(spec):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, field.name, None)


def test_a_pools_name_is_its_own():
    everything = {*SPECS} | {call.arguments["spec"] for call in _generated()}
    assert len({spec.name for spec in everything}) == len(everything)


def _generated():
    for method in ALL:
        experiment = FakeExperiment(build=True)
        method.training_data(experiment)
        yield from (call for call in experiment.calls if call.step in ("pools.generate", "pools.adopt"))


def test_pools_without_shots_are_made_of_words_alone():
    assert {spec.name for spec in SPECS if not spec.uses_shots} == {"plain"}
    for call in _generated():
        spec = call.arguments["spec"]
        if not spec.uses_shots:
            assert call.step == "pools.generate" and call.arguments["adapter"] is None
            assert call.arguments["condition_on"] is call.arguments["refine"] is None


def test_published_systems_are_the_seven_papers():
    papers = {"captions", "augcond", "datadream", "difficulty", "deliberate_practice", "saflex", "utilgen"}
    assert set(PUBLISHED) == papers
    assert {*BASELINES, *PUBLISHED} <= METHODS.keys()
    assert not [name for name in (*BASELINES, *PUBLISHED) if METHODS[name].only_in_ablations]


def test_ablations_name_methods_that_exist():
    assert {name for names in ABLATIONS.values() for name in names} <= METHODS.keys()


def test_each_section_is_declared_once_and_found_by_its_type():
    assert len(set(SECTIONS.values())) == len(SECTIONS)
    config = Config(method_sections={name: kind() for name, kind in SECTIONS.items()})
    for name, kind in SECTIONS.items():
        assert ALL_SECTIONS[name] is kind and type(config.section(kind)) is kind
        assert [field for field in dataclasses.fields(kind) if not field.metadata] == []
        assert all(field.path in FIELDS for field in section_fields(kind, f"{name}."))
    declared = [name for file in FILES for name in getattr(getattr(methods, file), "SECTIONS", {})]
    assert len(set(declared)) == len(declared) and set(declared) == set(SECTIONS)


@pytest.mark.parametrize("module", ["utilgen_jax.methods", "utilgen_jax.config.schema"])
def test_methods_are_read_before_jax_is_imported(module):
    script = f"import sys, {module}; print(*{{'jax', 'numpy', 'flax', 'transformers', 'scipy'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=FOLDER.parents[1], capture_output=True, check=True)
    assert result.stdout.decode().split() == []
