"""The regime map: its table, and a comparison for each regime."""

import json
import re
from pathlib import Path

from tests.compare.test_main import pretended  # noqa: F401, a fixture
from utilgen_jax.compare import __main__ as compare
from utilgen_jax.compare.regimes import regime_table
from utilgen_jax.compare.statistics import Run
from utilgen_jax.report import format_markdown_table, format_table

DIGITS = Path(__file__).parents[2] / "configs" / "digits.py"


def runs_of(method, accuracy_of_seeds, shots=5, only=None):
    return [
        Run(method, shots, seed, accuracy, 1.0, 0, {}, accuracy_synthetic_only=None if only is None else only[seed])
        for seed, accuracy in enumerate(accuracy_of_seeds)
    ]


def test_each_regime_is_a_row_and_plain_images_are_what_all_are_compared_with():
    first = runs_of("real", [0.5, 0.6]) + runs_of("vanilla", [0.7, 0.8]) + runs_of("joint", [0.75, 0.86])
    second = runs_of("vanilla", [0.9], only=[0.4]) + runs_of("joint", [0.91], only=[0.45])
    table = regime_table({"5x": first, "50x": second}, ["real", "vanilla", "joint"], format_markdown_table)
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert header == ["", "real images only", "plain synthetic images", "synthetic images, joint"]
    assert rows[0][:3] == ["5x", "-20.0 [-20.0, -20.0]", "75.0"] and rows[0][3].startswith("+5.5 [")
    assert rows[1:] == [["50x", "", "90.0", "+1.0"], ["50x, synthetic only", "", "40.0", "+5.0"]]


def test_several_numbers_of_shots_have_rows_each():
    runs = runs_of("vanilla", [0.5], shots=2) + runs_of("vanilla", [0.6], shots=5)
    assert "5x, 2 shots" in (table := regime_table({"5x": runs}, ["vanilla"], format_table)) and "5x, 5 shots" in table


def test_the_command_compares_in_each_regime(tmp_path, capsys, pretended):  # noqa: F811
    argv = ["compare", f"--config={DIGITS}:shots=3", "--regimes=5x,long_tail", "--methods=real,vanilla", "--seeds=1"]
    argv.append(f"--workdir={tmp_path}")
    assert compare.main(argv) == 0
    assert [(run.shots, run.images_per_shot) for run in pretended] == [(3, 5), (3, 5), (20, 0), (20, 0)]
    kept = {regime: json.loads((tmp_path / regime / "compare.json").read_text()) for regime in ("5x", "long_tail")}
    assert kept["long_tail"]["config"]["data"]["imbalance_factor"] == 20
    text = (tmp_path / "regimes.md").read_text()
    assert (
        re.search(r"^\| 5x \|.*\n\| long_tail \|", text, re.M)
        and "| real images only | plain synthetic images |" in text
    )
    assert "regimes.md" in capsys.readouterr().out
    # From kept files alone.
    other = tmp_path / "kept"
    other.mkdir()
    for regime in kept:
        (other / f"{regime}.json").write_text((tmp_path / regime / "compare.json").read_text())
    again = [*argv[:-1], f"--workdir={tmp_path / 'again'}", "--norun", f"--join={other}"]
    assert compare.main(again) == 0 and (tmp_path / "again" / "regimes.md").read_text() == text


def test_mistakes_are_told_before_anything_runs(tmp_path, capsys, pretended):  # noqa: F811
    argv = ["compare", f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"]
    assert compare.main([*argv, "--regimes=5x,polysemi"]) == 2
    assert "the nearest is 'polysemy'" in capsys.readouterr().err
    assert compare.main([*argv, "--regimes=5x", "--images_per_shot=1"]) == 2
    assert "--regimes, --images_per_shot: give only one" in capsys.readouterr().err
    assert not pretended and not (tmp_path / "run").exists()
