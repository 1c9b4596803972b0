"""The compare command: its command line, made-up runs on disk, and real runs at the smallest size."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from utilgen_jax import pipeline
from utilgen_jax.compare import __main__ as compare
from utilgen_jax.experiment.workdir import open_workdir, write_summary
from utilgen_jax.methods import ABLATIONS, METHODS

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "--config.generator.steps=2",
    "--config.generator.batch_size=16",
    "--config.pool.images_per_class=4",
    "--config.classifier.steps=10",
    "--config.classifier.width=8",
    "--config.valuation.steps=4",
    "--config.data.max_test=100",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=real,vanila"], "--methods=vanila: is not one of real, "),
        (["--methods="], "--methods: name at least one of real, "),
        (["--ablate=joiny"], "--ablate=joiny: is not one of joint; the nearest is joint"),
        (["--ablate=joint", "--methods=real"], "--ablate, --methods: give only one"),
        (["--shots=1,two"], "--shots: expected whole numbers, got 'two'"),
        (["--config.pool.image_per_class=3"], "config.pool.images_per_class"),
        (["--seeds=0"], "seeds"),
        (["--norun"], "has none of these runs"),
        (["--join=nowhere.json"], "--join: nowhere.json cannot be read as a compare.json (FileNotFoundError"),
    ],
)
def test_invalid_input_is_reported_and_nothing_is_written(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(compare, "ABLATIONS", {"joint": ("real", "vanilla")})
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", f"--workdir={tmp_path / 'run'}", *arguments]
    assert compare.main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ablations_have_known_methods_that_other_comparisons_leave_out(monkeypatch):
    for methods in ABLATIONS.values():
        assert set(methods) <= METHODS.keys()
    part = dataclasses.replace(METHODS["vanilla"], only_in_ablations=True)
    monkeypatch.setattr(compare, "METHODS", {**METHODS, "part": part})
    assert "vanilla" in (default := compare.define_flags()["methods"].value) and "part" not in default


@pytest.fixture
def pretended(monkeypatch):
    """Replaces the pipeline by made-up results; the second seed's accuracies are higher. Returns the list of runs."""
    seen = []

    def run(config, workdir, shared):
        seen.append((config.data.shots, config.seed, config.method))
        if len(seen) == 6:
            raise KeyboardInterrupt
        open_workdir(workdir, config)
        summary = {
            "method": config.method,
            "shots": config.data.shots,
            "seed": config.seed,
            "accuracy": {"real_only": 0.5, "final": 0.5 + 0.1 * config.seed + 0.2 * (config.method == "vanilla")},
            "num_synthetic": 40 * (config.method == "vanilla"),
            "seconds": {"pool": 1.5, "classifier": 2.25},
        }
        write_summary(workdir, summary)
        return summary

    monkeypatch.setattr(pipeline, "run", run)
    return seen


def test_a_comparison_resumes_and_reports_progress_and_partial_results(tmp_path, capsys, monkeypatch, pretended):
    monkeypatch.setattr(compare, "ABLATIONS", {"some": ("real", "vanilla")})
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", "--ablate=some", "--shots=1,2", "--seeds=2"]
    argv.append(f"--workdir={tmp_path}")
    assert compare.main(argv) == 130
    plan = [(shots, seed, method) for seed in (0, 1) for shots in (1, 2) for method in ("real", "vanilla")]
    assert pretended == plan[:6]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines[0] == "[1/8] 1 shots, seed 0: real" and lines[5].startswith("[6/8] 1 shots, seed 1: vanilla (ETA ")

    assert compare.main([*argv, "--norun"]) == 0
    printed = capsys.readouterr().out
    assert "Missing, 3 of 8 runs" in printed and "- vanilla, 2 shots, seeds: 1" in printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["missing"] == [
        {"method": method, "shots": shots, "seed": 1} for shots, method in ((1, "vanilla"), (2, "real"), (2, "vanilla"))
    ]
    assert len(pretended) == 6

    # A config of an older version lacks newer fields; their defaults apply.
    file = tmp_path / "shots_1" / "seed_0" / "real" / "config.json"
    before = json.loads(file.read_text())
    del before["classifier"]["augmentation"]
    file.write_text(json.dumps(before))
    assert compare.main(argv) == 0
    assert pretended[6:] == plan[5:]
    assert capsys.readouterr().err.startswith("[6/8] 1 shots, seed 1: vanilla\n[7/8]")
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["runs"][1] == {
        "method": "vanilla",
        "shots": 1,
        "seed": 0,
        "accuracy": 0.7,
        "seconds": 3.75,
        "num_synthetic": 40,
        "seconds_by_stage": {"pool": 1.5, "classifier": 2.25},
    }
    assert [(run["shots"], run["seed"], run["method"]) for run in content["runs"]] == sorted(plan)
    assert content["missing"] == [] and content["best_published"] is None
    assert "| 1 | + plain synthetic images | 75.0 ± 7.1 | +20.0 " in (tmp_path / "compare.md").read_text()
    with Image.open(tmp_path / "compare.png") as image:
        assert image.size[0] > 500


def test_joined_runs_are_reported_and_not_repeated(tmp_path, capsys, pretended):
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", "--methods=real,vanilla"]
    assert compare.main([*argv, f"--workdir={tmp_path / 'first'}"]) == 130
    assert compare.main([*argv, "--seeds=2", f"--workdir={tmp_path / 'first'}"]) == 0
    first = tmp_path / "first" / "compare.json"
    del pretended[:]
    argv += ["--seeds=3", f"--workdir={tmp_path / 'second'}", f"--join={first}"]
    assert compare.main([*argv, "--norun"]) == 0
    assert "Missing, 2 of 6 runs" in capsys.readouterr().out and not pretended
    assert compare.main(argv) == 0
    assert pretended == [(2, 2, "real"), (2, 2, "vanilla")]
    content, joined = (json.loads((tmp_path / name / "compare.json").read_text()) for name in ("second", "first"))
    assert [run for run in content["runs"] if run["seed"] < 2] == joined["runs"] and content["missing"] == []
    assert "| + plain synthetic images | 80.0 ± 10.0 |" in (tmp_path / "second" / "compare.md").read_text()

    capsys.readouterr()
    assert compare.main([*argv, "--config.classifier.steps=11"]) == 2
    assert "compare.json has another config" in (message := capsys.readouterr().err)
    assert "config.classifier.steps: 400 before, 11 now" in message and "data.shots" not in message
    damaged = joined | {"runs": [joined["runs"][0] | {"accuracy": "0.5"}]}
    for text in ("{", "[]", "{}", json.dumps(damaged), json.dumps(joined | {"runs": [{"method": "real"}]})):
        first.write_text(text)
        assert compare.main(argv) == 2
        assert f"--join: {first} cannot be read as a compare.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_shares_stages_resumes_and_writes_its_results(tmp_path, capsys):
    arguments = ["--methods=real,randaugment,vanilla", "--shots=1,2", "--seeds=2"]
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", f"--workdir={tmp_path}", *arguments, *TINY]
    assert compare.main(argv) == 0
    first = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [(run["shots"], run["seed"], run["method"]) for run in first] == [
        (shots, seed, method) for shots in (1, 2) for seed in (0, 1) for method in ("real", "randaugment", "vanilla")
    ]
    for run in first:
        folder = tmp_path / f"shots_{run['shots']}" / f"seed_{run['seed']}"
        real, own = (json.loads((folder / name / "summary.json").read_text()) for name in ("real", run["method"]))
        assert own["accuracy"]["final"] == run["accuracy"]
        assert own["accuracy"]["real_only"] == real["accuracy"]["final"]
    # One pool per seed, and one classifier of the real images per seed and number of shots.
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["seed_0", "seed_1"]
    assert len(list(tmp_path.glob("**/classifier_real.safetensors"))) == 4
    # The cost of a shared pool counts in each of its runs.
    costs = {(run["seed"], run["seconds_by_stage"]["pool_plain"]) for run in first if run["method"] == "vanilla"}
    assert len(costs) == 2 and min(seconds for _, seconds in costs) > 0.1
    assert "real images only, RandAugment" in (tmp_path / "compare.md").read_text()

    (tmp_path / "shots_2" / "seed_1" / "vanilla" / "summary.json").unlink()
    capsys.readouterr()
    assert compare.main(argv) == 0
    assert capsys.readouterr().err.count("] 2 shots, seed 1: vanilla") == 1
    again = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [run["accuracy"] for run in again] == [run["accuracy"] for run in first]

    # Another config in the same folder is refused.
    assert compare.main([*argv, "--config.classifier.steps=11"]) == 2
    assert "classifier.steps: 10 before, 11 now" in capsys.readouterr().err
