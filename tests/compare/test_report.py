"""Output of a comparison for made-up summaries."""

import dataclasses
import json

import pytest

from tests.report.conftest import Elements
from utilgen_jax.compare.plan import plan_runs
from utilgen_jax.compare.report import write_comparison
from utilgen_jax.compare.statistics import Run, run_of


def summary(shots, seed, method, accuracy):
    return {
        "method": method,
        "shots": shots,
        "seed": seed,
        "accuracy": {"final": accuracy},
        "num_synthetic": 0 if method == "real" else 100,
        "seconds": {"a": 1.5, "b": 2.5},
    }


PLAN = plan_runs((0, 1), (1, 2), ("real", "vanilla", "saflex"), ())
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


def curve_runs():
    """Two seeds of `real`, and of `vanilla` and `saflex` at two sizes; one run of saflex is missing."""
    plan = plan_runs((0, 1), (2,), ("real", "vanilla", "saflex"), (10, 5))
    runs = []
    for entry in plan:
        found = summary(*entry[:3], ACCURACY[entry.method] + 0.01 * entry.images_per_shot)
        if entry.method != "real":
            found["accuracy_synthetic_only"] = {"final": found["accuracy"]["final"] - 0.3 + 0.01 * entry.seed}
        runs.append(run_of(found, entry.images_per_shot))
    return plan, runs[:-1]


def test_the_curve_has_a_table_and_statistics_for_each_size(tmp_path, capsys):
    plan, runs = curve_runs()
    write_comparison(tmp_path, {"classifier": {"synthetic_fraction": 0.0}}, runs[::-1], plan)
    page, content = (tmp_path / "compare.md").read_text(), json.loads((tmp_path / "compare.json").read_text())
    mixed, only = page.split("Trained on synthetic_only:")
    assert "Missing, 1 of 10 runs" in page and "- saflex, 2 shots, 5 images a shot, seeds: 1" in page
    for text in (
        "| 2 shots, accuracy, % | 5 a real image | 10 a real image |",
        "| real images only | 50.0 ± 0.0 | 50.0 ± 0.0 |",
        "| + plain synthetic images | 65.0 ± 0.0 | 70.0 ± 0.0 |",
        "| + synthetic images, SAFLEX | 85.0 | 90.0 ± 0.0 |",
        "| 2 shots, minus plain | 5 a real image | 10 a real image |",
        "| + synthetic images, SAFLEX | +20.0 | +20.0 [+20.0, +20.0] |",
    ):
        assert text in mixed, text
    assert (
        "| + plain synthetic images | 35.5 ± 0.7 | 40.5 ± 0.7 |" in only and "| real images only | 50.0 ± 0.0 |" in only
    )
    assert list(content["curve"]) == ["5", "10"]
    at_ten = content["curve"]["10"]["synthetic_only"]
    assert at_ten["best_published"] == "saflex" and at_ten["error_reduction"]["vanilla"]["mean"] < 0
    assert [result["method"] for result in at_ten["results"]] == ["real", "vanilla", "saflex"]
    assert content["missing"] == [{"shots": 2, "seed": 1, "method": "saflex", "images_per_shot": 5}]
    # What was written is read again, run by run.
    assert [Run(**run) for run in content["runs"]] == sorted(
        runs, key=lambda run: (run.images_per_shot, run.seed, ["real", "vanilla", "saflex"].index(run.method))
    )
    assert "curve.png" in capsys.readouterr().out and (tmp_path / "curve.png").stat().st_size > 1000


def test_the_page_tells_what_helped_what_it_cost_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", "--config=<b>.py"])
    runs = [run_of(summary(*entry[:3], ACCURACY[entry.method] + 0.01 * entry.seed)) for entry in PLAN[:-1]]
    write_comparison(tmp_path, {"seed": 0, "data": {"name": "<i>digits"}}, runs, PLAN)
    found = Elements((tmp_path / "compare.html").read_text())
    assert [section["id"] for section in found.all("section")] == [
        "did-it-help",
        "what-did-it-cost",
        "how-do-i-repeat-it",
    ]
    for text in (
        "<i>digits: 3 methods",
        "1 shot: best is synthetic images, SAFLEX, 80.5 ± 0.7 %, +30.0 [+30.0, +30.0] points over",
        "minus saflex (best published)", "+ plain synthetic images b 2.5s, a 1.5s 100 4.0s",
        "python -m utilgen_jax.compare '--config=<b>.py'", "saflex, 2 shots, seeds: 1", "All 11 runs", "data.name",
    ):  # fmt: skip
        assert text in found.text, text
    assert len(found.all("svg")) == 1 and not found.all("script") and not found.all("b")
    labels = [region["aria-label"] for region in found.all("div") if region.get("role") == "region"]
    assert len(labels) == len(set(labels)) == 8


def test_the_page_of_a_curve_has_the_curve(tmp_path):
    plan, runs = curve_runs()
    write_comparison(tmp_path, {}, runs, plan)
    found = Elements((tmp_path / "compare.html").read_text())
    assert [section["id"] for section in found.all("section")][1] == "with-how-many-images"
    assert "2 shots: best is synthetic images, SAFLEX, 90.0" in found.text and len(found.all("svg")) == 1
    assert "Trained on synthetic images alone 2 shots, accuracy, % 5 a real image 10 a real image" in found.text


def test_a_config_of_synthetic_images_only_is_named_in_the_curve(tmp_path):
    plan, runs = curve_runs()
    runs = [dataclasses.replace(run, accuracy_synthetic_only=None) for run in runs]
    write_comparison(tmp_path, {"classifier": {"synthetic_fraction": 1.0}}, runs, plan)
    assert list(json.loads((tmp_path / "compare.json").read_text())["curve"]["5"]) == ["synthetic_only"]


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
