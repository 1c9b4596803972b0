"""The comparison: its statistics on made-up runs, its command line, and one real run at the smallest size."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from utilgen_jax import compare, comparison

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = (
    "--config.generator.steps=2",
    "--config.generator.batch_size=16",
    "--config.pool.images_per_class=4",
    "--config.classifier.steps=10",
    "--config.classifier.width=8",
    "--config.utility.steps=4",
    "--config.data.max_test=100",
)


def made_up_runs(accuracies: dict[str, list[float]], shots: int = 2) -> list[dict]:
    return [
        {
            "method": method,
            "shots": shots,
            "seed": seed,
            "accuracy": {"final": value},
            "num_synthetic": 0 if method == "real" else 1000,
            "seconds": {"a": 1.0, "b": 2.0},
        }
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_differences_are_paired_and_carry_the_t_interval():
    values = {"real": [0.70, 0.80, 0.75], "vanilla": [0.85, 0.88, 0.90], "utilgen": [0.86, 0.88, 0.93]}
    # In another order of seeds: pairing goes by seed, not by place.
    rows = comparison.table_rows(made_up_runs(values)[::-1], ["real", "vanilla", "utilgen"])
    assert [row[0] for row in rows] == ["2", "2", "2"]
    assert rows[0][2] == f"75.0 ± {np.std([70, 80, 75], ddof=1):.1f}"
    expected = scipy.stats.ttest_rel(values["utilgen"], values["real"]).confidence_interval(0.95)
    mean = 100 * np.mean(np.subtract(values["utilgen"], values["real"]))
    assert rows[2][3] == f"{mean:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    assert rows[0][3:5] == ["", ""] and rows[1][4] == "" and rows[2][4].startswith("+1.3")
    assert rows[0][5] == "0" and rows[2][5] == "1000" and rows[2][6] == "3"


def test_one_seed_has_no_interval():
    rows = comparison.table_rows(made_up_runs({"real": [0.7], "vanilla": [0.9]}), ["real", "vanilla"])
    assert rows[0][2] == "70.0" and rows[1][3] == "+20.0"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--methods=real,vanila", "--methods: 'vanila' is unknown; the nearest is 'vanilla'"),
        ("--shots=1,two", "--shots: expected whole numbers, got 'two'"),
        ("--config.pool.image_per_class=3", "--config.pool.images_per_class"),
        ("--seeds=0", "seeds"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(tmp_path, capsys, argument, message):
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", f"--workdir={tmp_path / 'run'}", argument]
    assert compare.main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_shares_stages_resumes_and_writes_its_table(tmp_path, capsys):
    rows = ["--methods=real,vanilla,utilgen", "--shots=1,2", "--seeds=2"]
    argv = ["compare", f"--config={CONFIGS / 'digits.py'}", f"--workdir={tmp_path}", *rows, *TINY]
    assert compare.main(argv) == 0
    first = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [(run["shots"], run["seed"], run["method"]) for run in first] == [
        (shots, seed, method) for shots in (1, 2) for seed in (0, 1) for method in ("real", "vanilla", "utilgen")
    ]
    for run in first:
        assert run["accuracy"]["real_only"] == next(
            other["accuracy"]["final"]
            for other in first
            if other["method"] == "real" and (other["shots"], other["seed"]) == (run["shots"], run["seed"])
        )
    # One pool a seed, and one classifier of the real pictures a seed and number of shots.
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["seed_0", "seed_1"]
    assert len(list(tmp_path.glob("**/classifier_real.safetensors"))) == 4
    assert "+ synthetic pictures, UtilGen" in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 1000

    (tmp_path / "shots_2" / "seed_1" / "utilgen" / "summary.json").unlink()
    capsys.readouterr()
    assert compare.main(argv) == 0
    assert capsys.readouterr().err.count("] 2 shots, seed 1: utilgen") == 1
    again = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [run["accuracy"] for run in again] == [run["accuracy"] for run in first]

    # What is on disk belongs to this config; another one would mix with it.
    assert compare.main([*argv, "--config.classifier.steps=11"]) == 2
    assert "classifier.steps: 10 before, 11 now" in capsys.readouterr().err
