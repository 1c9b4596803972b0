import re

import numpy as np
import pytest

from tests.experiment.conftest import random_pool
from utilgen_jax.data.images import to_float
from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.experiment.experiment import Accuracy, TrainingData
from utilgen_jax.experiment.results import changes, next_commands, print_table, report_data, write_results
from utilgen_jax.methods import METHODS
from utilgen_jax.report.data import RunData, load, shown_real
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


def test_the_terminal_tells_what_changed_most():
    real = LabelledImages(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("a", "b"), ("zero", "one"))
    labels = np.array([0] * 60 + [1] * 40)
    predicted = {"real_only": np.zeros(100, int), "final": np.array([0] * 65 + [1] * 35)}
    assert changes(RunData(**shown_real(real), test_labels=labels, predicted=predicted)) == [
        "over real images alone: +35.0 points [+26.0, +44.0]",
        "changed most: one 0.0% -> 87.5%, zero 100.0% -> 100.0%",
        "mistakes: one as zero 40 -> 5",
        "",
    ]
    assert changes(RunData(**shown_real(real))) == []


@pytest.mark.parametrize("given", [["--workdir=runs/mine"], ["--workdir", "runs/mine"], []])
def test_the_next_commands_are_those_of_this_config(given):
    argv = ["main.py", "--config=digits:shots=5", *given, "--config.seed=1"]
    run = summary("joint")
    compare, generate = next_commands(run, "runs/mine", argv)
    assert compare == (
        "next, whether other seeds agree: python -m utilgen_jax.compare --config=digits:shots=5 --config.seed=1 "
        "--methods=real,vanilla,joint --workdir=runs/mine-seeds"
    )
    assert generate.endswith("utilgen_jax.generate --workdir=runs/mine --num=1234 --out=runs/mine-more")
    assert len(next_commands(run | {"num_synthetic": 0}, "runs/mine", argv)) == 1
    assert next_commands(run, "runs/mine", ["ipykernel"]) == []


def test_the_report_is_made_of_what_the_run_has(make_experiment, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--config=a b.py"])
    experiment = make_experiment("vanilla", data__max_test=18)
    pool, predicted = random_pool(6), np.zeros(18, np.int32)
    values = PoolValues(np.ones(6), np.linspace(0.2, 3, 6), difficulty=np.linspace(0.1, 0.9, 6))
    accuracy = {"real_only": Accuracy(0.5, predicted=predicted), "final": Accuracy(0.5, 0.25)}
    data = report_data(experiment, accuracy, TrainingData(None, pool, values), values.difficulty)
    assert data.class_names == ("zero", "one") and data.num_real.tolist() == [2, 2]
    assert data.test_labels is experiment.split.test.labels and list(data.predicted) == ["real_only"]
    assert data.losses is values.losses and data.plain_difficulty is values.difficulty
    assert data.real_difficulty.shape == (4,) and data.gate_gains is None
    assert data.map_real.shape == (4, 2) and data.map_synthetic.shape == (6, 2) and data.map_explained.sum() <= 1
    assert data.map_synthetic_labels.tolist() == pool.labels.tolist()
    assert data.pool == "pool/round_00" and data.inputs == experiment.inputs
    assert data.command == "python -m utilgen_jax.main '--config=a b.py'"
    assert ("classifier.width", "32", "8") in data.changed and "seed" not in [name for name, _, _ in data.changed]
    assert {"classifier_real", "difficulty", "image_map"} <= set(experiment.stages.seconds)


def test_the_map_is_scikit_learns_pca_of_the_features(make_experiment, monkeypatch):
    from sklearn.decomposition import PCA

    experiment, pool = make_experiment("vanilla"), random_pool(6)
    places = experiment.classifiers.image_map(pool)
    params = experiment.classifiers.real()
    inputs = np.concatenate([to_float(experiment.real.inputs), experiment.examples(pool).inputs])
    expected = PCA(2).fit_transform(np.asarray(experiment.classifier.features(params, inputs), np.float64))
    np.testing.assert_allclose(np.concatenate([places["real"], places["synthetic"]]), expected, atol=1e-5)


def test_the_report_is_written_with_what_it_is_made_of(tmp_path):
    real = LabelledImages(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1]), tuple("abcd"), ("zero", "one"))
    page = write_results(tmp_path, summary(), RunData(**shown_real(real)), None)
    assert page == tmp_path / "report" / "index.html" and "89.2 %" in page.read_text(encoding="utf-8")
    assert load(tmp_path).class_names == ["zero", "one"]
