import re

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.config.schema import default_config
from utilgen_jax.config.validation import checked
from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.experiment.results import print_table, write_results
from utilgen_jax.methods import METHODS
from utilgen_jax.pool.storage import Pool, PoolRecord
from utilgen_jax.report import MetricsWriter
from utilgen_jax.valuation.cross_fit import PoolValues


def summary(method="utilgen", **accuracy):
    return {
        "method": method, "dataset": "digits", "shots": 2, "seed": 3,
        "accuracy": accuracy or {"real_only": 0.7951, "vanilla": 0.8824, "final": 0.8917},
        "num_real": 4, "num_synthetic": 1234, "seconds": {"pool": 60.0}, "versions": {"jax": "0.10.2"},
    }  # fmt: skip


def table_rows(capsys):
    """The cells of the printed rows, headers and rule left out."""
    return [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if "%" in line]


def test_the_table_has_a_row_for_each_training_set(capsys):
    print_table(summary())
    out = capsys.readouterr().out
    assert "digits, 2 labelled images a class, seed 3, test accuracy:" in out
    print_table(summary())
    assert table_rows(capsys) == [
        [METHODS["real"].title, "4", "0", "79.5%"],
        [METHODS["vanilla"].title, "4", "1234", "88.2%"],
        [METHODS["utilgen"].title, "4", "1234", "89.2%"],
    ]


def test_synthetic_images_only_have_a_column_of_their_own(capsys):
    print_table(summary() | {"accuracy_synthetic_only": {"vanilla": 0.5, "final": 0.625}})
    out = capsys.readouterr().out
    assert "with real images  synthetic images only" in out
    rows = [re.split(r" {2,}", line.strip())[3:] for line in out.splitlines() if "%" in line]
    assert rows == [["79.5%", "–"], ["88.2%", "50.0%"], ["89.2%", "62.5%"]]
    both = {"vanilla": 0.8824, "final": 0.8917}
    print_table(summary() | {"accuracy_synthetic_only": both, "trained_on": "synthetic_only"})
    rows = [re.split(r" {2,}", line.strip())[3:] for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert rows == [["79.5%", "–"], ["–", "88.2%"], ["–", "89.2%"]]


def test_the_updates_own_classifiers_stand_below_the_table(capsys):
    print_table(summary("joint") | {"accuracy_of_update": 0.9375})
    assert "each of its averaged parameters: 93.8%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "accuracy", "titles"),
    [
        ("real", {"real_only": 0.5, "final": 0.5}, ["real"]),
        ("vanilla", {"real_only": 0.5, "vanilla": 0.6, "final": 0.6}, ["real", "vanilla"]),
        ("utilgen", {"real_only": 0.5, "final": 0.7}, ["real", "utilgen"]),
    ],
)
def test_a_method_that_is_a_baseline_stands_there_once(capsys, method, accuracy, titles):
    print_table(summary(method, **accuracy))
    assert [row[0] for row in table_rows(capsys)] == [METHODS[name].title for name in titles]


def run_of(tmp_path, values, with_metrics=True):
    rng = np.random.default_rng(0)
    real = LabelledImages(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1]), tuple("abcd"), ("zero", "one"))
    pool = None
    if values is not None:
        records = tuple(PoolRecord(label=i % 2, prompt="a photo", weight=0.5, difficulty=0.5) for i in range(6))
        pool = Pool(rng.integers(256, size=(6, 16, 16, 3)).astype(np.uint8), np.arange(6) % 2, records)
    if with_metrics:
        with MetricsWriter(tmp_path) as metrics:
            for step in (1, 2, 3):
                metrics.write(step, "classifier real_only", loss=1 / step)
    return write_results(tmp_path, checked(default_config()), summary(), real, pool, rng.uniform(size=4), values)


UNIFORM = PoolValues(np.ones(6), difficulty=np.linspace(0.1, 0.9, 6))
LEARNT = PoolValues(np.linspace(0.9, 0.1, 6), np.linspace(0.2, 3, 6), difficulty=np.linspace(0.1, 0.9, 6))


@pytest.mark.parametrize(
    ("values", "with_metrics", "figures"),
    [
        pytest.param(LEARNT, True, {"curves", "difficulty", "weight_curve"}, id="weight network"),
        pytest.param(UNIFORM, True, {"curves", "difficulty"}, id="uniform weights"),
        pytest.param(None, True, {"curves"}, id="no pool"),
        pytest.param(None, False, set(), id="nothing logged"),
    ],
)
def test_the_report_has_the_figures_there_is_something_to_draw_for(
    tmp_path, monkeypatch, values, with_metrics, figures
):
    monkeypatch.setattr("sys.argv", ["main.py", "--config=a b.py"])
    page = run_of(tmp_path, values, with_metrics)
    assert page == tmp_path / "report" / "index.html"
    assert {file.stem for file in page.parent.glob("*.png")} == figures
    for name in figures:
        with Image.open(page.parent / f"{name}.png") as image:
            assert min(image.size) > 100
    html = page.read_text(encoding="utf-8")
    assert "89.2 %" in html and "python -m utilgen_jax.main &#x27;--config=a b.py&#x27;" in html
