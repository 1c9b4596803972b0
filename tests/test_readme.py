"""README tells the truth: its Python runs, and its tables of results are those of the runs that are kept."""

import doctest
import json
from pathlib import Path

import pytest

from utilgen_jax.compare.report import tables
from utilgen_jax.compare.statistics import Run
from utilgen_jax.methods import METHODS
from utilgen_jax.report import format_markdown_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.slow
def test_the_examples_in_python_do_what_they_say():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.attempted > 10 and results.failed == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [("rows_digits", (0, 1, -1)), ("ablation_utilgen", (0,)), ("rows_pneumoniamnist", (0,))],
)
def test_the_tables_of_results_are_those_of_the_runs_that_are_kept(name, parts):
    content = json.loads((ROOT / "utilgen_jax" / "assets" / "readme" / f"{name}.json").read_text(encoding="utf-8"))
    runs = [Run(**entry) for entry in content["runs"]]
    methods = [method for method in METHODS if any(run.method == method for run in runs)]
    found, text = tables(runs, methods, format_markdown_table), README.read_text(encoding="utf-8")
    for part in parts:
        assert found[part] in text
