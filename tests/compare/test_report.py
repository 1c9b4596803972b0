"""Output of a comparison for made-up summaries."""

import json

import pytest

from utilgen_jax.compare.plan import PlannedRun
from utilgen_jax.compare.report import write_comparison
from utilgen_jax.compare.statistics import run_of


def summary(shots, seed, method, accuracy):
    return {
        "method": method,
        "shots": shots,
        "seed": seed,
        "accuracy": {"final": accuracy},
        "num_synthetic": 0 if method == "real" else 100,
        "seconds": {"a": 1.5, "b": 2.5},
    }


PLAN = [
    PlannedRun(shots, seed, method) for seed in (0, 1) for shots in (1, 2) for method in ("real", "vanilla", "saflex")
]
ACCURACY = {"real": 0.5, "vanilla": 0.6, "saflex": 0.8}


@pytest.fixture(params=["whole", "without real", "one run"])
def written(request, tmp_path, capsys):
    """Returns the printed text, and the contents of compare.md and compare.json."""
    plan = {"whole": PLAN, "without real": [entry for entry in PLAN if entry[2] != "real"], "one run": PLAN[2:3]}
    chosen = plan[request.param]
    runs = [run_of(summary(*entry[:3], ACCURACY[entry.method])) for entry in chosen[::-1]]
    write_comparison(tmp_path, {"seed": 0}, runs, PLAN)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "compare.json").read_text(), parse_constant=refuse)
    assert (tmp_path / "compare.png").stat().st_size > 1000
    return request.param, capsys.readouterr().out, (tmp_path / "compare.md").read_text(), content


def test_text_and_markdown_tables_agree(written):
    case, printed, markdown, content = written
    assert "minus saflex (best published)" in printed and "minus saflex (best published)" in markdown
    if case == "whole":
        line = "| + plain synthetic images | 60.0 ± 0.0 | +10.0 [+10.0, +10.0] |  | -20.0 [-20.0, -20.0] |"
        assert line in markdown
        # The overview comes first: an accuracy for each number of shots.
        assert markdown.startswith("| accuracy, % | 1 shot | 2 shots |")
        assert "\n| + synthetic images, SAFLEX | 80.0 ± 0.0 | 80.0 ± 0.0 |\n" in markdown
        against_plain = "| + synthetic images, SAFLEX | +20.0 [+20.0, +20.0] | +20.0 [+20.0, +20.0] |"
        assert f"\n\n| minus plain | 1 shot | 2 shots |\n| --- | ---: | ---: |\n{against_plain}\n\n" in markdown
        # Errors of 0.5 and 0.4 against 0.2; published methods are not in this table.
        assert "| real images only | -150.0 [-150.0, -150.0] |" in markdown
        assert "| + plain synthetic images | -100.0 [-100.0, -100.0] |" in markdown
        assert list(content["error_reduction"]) == ["real", "vanilla"] and "Missing" not in printed
    else:
        missing = {"without real": "Missing, 4 of 12 runs", "one run": "Missing, 11 of 12 runs"}[case]
        assert missing in printed and missing in markdown
        assert "- real, 2 shots, seeds: 0, 1" in printed.splitlines()


def test_json_has_runs_and_results_as_numbers(written):
    case, _, _, content = written
    present = {"whole": 12, "without real": 8, "one run": 1}[case]
    assert len(content["runs"]) == present and len(content["missing"]) == len(PLAN) - present
    for run in content["runs"]:
        types = {"method": str, "shots": int, "seed": int, "accuracy": float, "seconds": float, "num_synthetic": int}
        assert all(type(run[name]) is kind for name, kind in types.items())
        assert run["seconds"] == 4 and run["seconds_by_stage"] == {"a": 1.5, "b": 2.5}
    result = content["results"][-1]
    assert result["method"] == "saflex" and result["minus_best"] is None
    assert (result["minus_real"] is not None) == (case == "whole")
