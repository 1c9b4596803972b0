"""The compare command: its command line, made-up runs on disk, and real runs at the smallest size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utilgen_jax import pipeline
from utilgen_jax.compare import __main__ as compare
from utilgen_jax.compare.plan import PlannedRun, plan_runs, shared_dirs
from utilgen_jax.config.command_line import read_config
from utilgen_jax.experiment.workdir import open_workdir, write_summary
from utilgen_jax.methods import ABLATIONS, METHODS
from utilgen_jax.pool.storage import read_pool

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
        (["--images_per_shot=1,x"], "--images_per_shot: expected whole numbers, got 'x'"),
        (["--images_per_shot=0,1"], "--images_per_shot: must be at least 1, got 0"),
        (["--images_per_shot=1", "--config.pool.fill_to=9"], "config.pool.images_per_shot: the number of synthetic"),
        (["--protocol=5"], "--protocol=5: is not one of 5x, 50x, real+synthetic, synthetic_only; the nearest is 5x"),
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
        seen.append(PlannedRun(config.data.shots, config.seed, config.method, config.pool.images_per_shot))
        if len(seen) == 6:
            raise KeyboardInterrupt
        open_workdir(workdir, config)
        size, synthetic = config.pool.images_per_shot, config.method == "vanilla"
        only = {"final": 0.4 + 0.01 * size + 0.1 * config.seed} if synthetic and config.also_synthetic_only else {}
        summary = {
            "method": config.method,
            "shots": config.data.shots,
            "seed": config.seed,
            "accuracy": {"real_only": 0.5, "final": 0.5 + 0.1 * config.seed + 0.2 * synthetic},
            "accuracy_synthetic_only": only,
            "num_synthetic": 40 * synthetic,
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
    plan = plan_runs((0, 1), (1, 2), ("real", "vanilla"), ())
    assert plan[:3] == [(1, 0, "real", 0), (1, 0, "vanilla", 0), (2, 0, "real", 0)]
    assert pretended == plan[:6]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines[0] == "[1/8] 1 shots, seed 0: real" and lines[5].startswith("[6/8] 1 shots, seed 1: vanilla (ETA ")

    assert compare.main([*argv, "--norun"]) == 0
    printed = capsys.readouterr().out
    assert "Missing, 3 of 8 runs" in printed and "- vanilla, 2 shots, seeds: 1" in printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["missing"] == [
        {"method": method, "shots": shots, "seed": 1, "images_per_shot": 0}
        for shots, method in ((1, "vanilla"), (2, "real"), (2, "vanilla"))
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
        "images_per_shot": 0,
        "accuracy_synthetic_only": None,
    }
    assert [(run["shots"], run["seed"], run["method"], 0) for run in content["runs"]] == sorted(plan)
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
    assert pretended == [(2, 2, "real", 0), (2, 2, "vanilla", 0)]
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


def test_the_curve_runs_each_size_once_and_resumes(tmp_path, capsys, pretended):
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", "--methods=real,vanilla", "--images_per_shot=5,1"]
    argv += ["--seeds=2", f"--workdir={tmp_path}"]
    assert compare.main(argv) == 130
    plan = [(2, seed, *rest) for seed in (0, 1) for rest in (("real", 0), ("vanilla", 5), ("vanilla", 1))]
    assert pretended == plan
    assert compare.main([*argv, "--norun"]) == 0
    assert "- vanilla, 2 shots, 1 images a shot, seeds: 1" in capsys.readouterr().out
    assert compare.main(argv) == 0
    assert pretended[6:] == plan[5:]
    content = json.loads((tmp_path / "compare.json").read_text())
    assert list(content) == ["config", "runs", "curve", "missing"] and content["missing"] == []
    found = {size: part["real+synthetic"]["results"] for size, part in content["curve"].items()}
    assert {size: [result["method"] for result in results] for size, results in found.items()} == {
        "1": ["real", "vanilla"],
        "5": ["real", "vanilla"],
    }
    assert found["5"][1]["accuracy"] == pytest.approx(75) and found["5"][1]["minus_real"]["mean"] == pytest.approx(20)
    page = (tmp_path / "compare.md").read_text()
    assert "| 2 shots, accuracy, % | 1 a real image | 5 a real image |" in page
    assert "| + plain synthetic images | 75.0 ± 7.1 | 75.0 ± 7.1 |" in page
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > 300
    assert not (tmp_path / "compare.png").exists()
    # A size more: what there is stays.
    del pretended[:]
    assert compare.main([*argv, "--images_per_shot=1,5,10"]) == 0
    assert pretended == [(2, 0, "vanilla", 10), (2, 1, "vanilla", 10)]
    # The first runs are those of the comparison without sizes, which lacks but its own.
    assert compare.main([*argv, "--images_per_shot="]) == 0
    assert pretended[2:] == [(2, 0, "vanilla", 0), (2, 1, "vanilla", 0)]


def test_synthetic_images_only_are_a_second_part_of_everything(tmp_path, capsys, pretended):
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", "--methods=real,vanilla", "--seeds=2"]
    argv.append(f"--workdir={tmp_path}")
    assert compare.main(argv) == 0
    first = json.loads((tmp_path / "compare.json").read_text())
    assert "synthetic_only" not in first and "Trained on" not in capsys.readouterr().out
    # What lacks the second accuracy runs again, which reads its finished stages.
    assert compare.main([*argv, "--also_synthetic_only", "--norun"]) == 0
    assert "Missing, 2 of 4 runs" in capsys.readouterr().out
    pretended += ["not the", "sixth"]
    assert compare.main([*argv, "--also_synthetic_only"]) == 0
    assert pretended[6:] == [(2, 0, "vanilla", 0), (2, 1, "vanilla", 0)]
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["results"] == first["results"]
    real, vanilla = content["synthetic_only"]["results"]
    assert real["accuracy"] == first["results"][0]["accuracy"] and vanilla["accuracy"] == pytest.approx(45)
    page = (tmp_path / "compare.md").read_text()
    order = ("Trained on real+synthetic:", "75.0 ± 7.1", "Trained on synthetic_only:", "45.0 ± 7.1")
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert (tmp_path / "compare_synthetic_only.png").is_file()
    # In a protocol of synthetic images alone there is but one accuracy.
    capsys.readouterr()
    argv[-1] += "/only"
    assert compare.main([*argv, "--protocol=synthetic_only", "--also_synthetic_only"]) == 0
    assert "Trained on" not in capsys.readouterr().out


def test_pools_are_shared_by_what_their_number_of_images_follows_from(tmp_path):
    plan = plan_runs((0, 1), (1, 2), ("real", "vanilla"), (5, 10))
    config = read_config(str(CONFIGS / "digits.py"))
    shared = shared_dirs(config, tmp_path, PlannedRun(2, 1, "vanilla", 5), plan)
    folder = tmp_path / "images_per_shot_5" / "shots_2" / "seed_1"
    assert (shared.stages, shared.pools, shared.shotless_pools) == (folder / "stages", folder / "pool", folder / "pool")
    assert shared.real_stages == tmp_path / "shots_2" / "seed_1" / "stages"
    # Any size of the seed may be larger, with the same shots or others.
    names = {str(other.pools.relative_to(tmp_path)) for other in shared.other_sizes}
    sizes = {f"images_per_shot_{size}/shots_{shots}" for size in (5, 10) for shots in (1, 2)} | {"shots_1", "shots_2"}
    assert names == {f"{size}/seed_1/pool" for size in sizes - {"images_per_shot_5/shots_2"}}

    # A fixed number: one plain pool for all numbers of shots.
    entry = PlannedRun(2, 1, "vanilla")
    assert shared_dirs(config, tmp_path, entry, [entry]).shotless_pools == tmp_path / "pool" / "seed_1"
    # What fills the classes up follows from the shots.
    filled = read_config(str(CONFIGS / "digits.py"), [("pool.fill_to", "9")])
    own = tmp_path / "shots_2" / "seed_1"
    assert shared_dirs(filled, tmp_path, entry, [entry]).shotless_pools == own / "pool"


@pytest.mark.slow
def test_the_smaller_pools_of_a_curve_begin_the_larger_ones(tmp_path):
    tiny = [*TINY, "--config.generator.batch_size=10", "--config.classifier.name=mlp"]  # quicker to compile
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", "--methods=vanilla", "--seeds=1", *tiny]
    assert compare.main([*argv, f"--workdir={tmp_path}", "--images_per_shot=1,2"]) == 0
    small, large = (
        read_pool(tmp_path / f"images_per_shot_{size}/shots_2/seed_0/pool/plain/round_00") for size in (1, 2)
    )
    assert len(small.labels) == 20 and len(large.labels) == 40
    np.testing.assert_array_equal(small.images, large.images[:20])
    assert small.records == large.records[:20]
    # One classifier of the real images, and one of each size.
    stages = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("**/classifier_*.safetensors"))
    sizes = [f"images_per_shot_{size}/shots_2/seed_0/stages/classifier_vanilla.safetensors" for size in (1, 2)]
    assert stages == [*sizes, "shots_2/seed_0/stages/classifier_real.safetensors"]
    # The same images as by themselves, but for rounding.
    alone = tmp_path / "alone"
    assert compare.main([*argv, f"--workdir={alone}", "--config.pool.images_per_shot=2"]) == 0
    own = read_pool(alone / "shots_2/seed_0/pool/plain/round_00")
    assert np.abs(own.images.astype(int) - large.images).max() <= 1


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
