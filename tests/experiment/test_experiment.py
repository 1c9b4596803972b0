"""The experiment itself: what classifiers see of a pool, where pools are, and what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from tests.experiment.conftest import NamedPool, random_pool
from utilgen_jax.data.images import resize, to_float, to_uint8
from utilgen_jax.experiment import experiment as experiment_module
from utilgen_jax.experiment.classifiers import Evaluation
from utilgen_jax.experiment.experiment import Accuracy, SharedDirs, TrainingData
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.workdir import versions
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.pool.storage import PoolWriter, read_pool
from utilgen_jax.valuation.cross_fit import PoolValues
from utilgen_jax.valuation.saflex import SaflexClassifier


def shared_dirs(folder):
    return SharedDirs(folder / "stages", folder / "pools", folder / "shotless")


def test_each_use_of_randomness_has_a_key_of_its_own_that_follows_the_seed(make_experiment, tmp_path):
    keys = {
        (seed, use): tuple(
            jax.random.key_data(make_experiment(workdir=tmp_path / f"{seed}", seed=seed).key(use)).tolist()
        )
        for seed in (0, 1)
        for use in Key
    }
    assert len(set(keys.values())) == 2 * len(Key)
    for (seed, use), key in keys.items():
        assert key == tuple(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), int(use))).tolist())


def test_mesh_and_metrics_are_open_within_the_block(make_experiment):
    experiment = make_experiment(is_open=False)
    with experiment as entered:
        assert entered is experiment
        assert jax.sharding.get_mesh().axis_names == experiment.mesh.axis_names == ("data", "fsdp")
        experiment.metrics.write(3, "a stage", loss=0.5)
        writer = experiment.metrics
        assert writer._file is not None
    assert writer._file is None and jax.sharding.get_mesh().empty
    (line,) = (experiment.workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) | {"time": 0} == {"step": 3, "stage": "a stage", "time": 0, "loss": 0.5}


def test_what_goes_wrong_in_the_block_leaves_it_and_closes_it(make_experiment):
    experiment = make_experiment(is_open=False)
    with pytest.raises(ZeroDivisionError):
        with experiment:
            writer = experiment.metrics
            1 / 0  # noqa: B018
    assert writer._file is None and jax.sharding.get_mesh().empty


def test_training_is_logged_under_the_stage_that_is_computed(make_experiment):
    experiment = make_experiment(log_every_steps=2)

    def compute():
        with experiment.training_loop(3) as loop:
            state = loop.run(np.zeros(1), 3, lambda state, step: (state + 1, {"loss": jax.numpy.float32(step + 1)}))
        return {"value": state}

    experiment.stages.run("the_stage", dict, compute)
    entries = [json.loads(line) for line in (experiment.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"], entry["loss"]) for entry in entries] == [
        ("the_stage", 2, 1.5),
        ("the_stage", 3, 3.0),
    ]


def test_the_shots_as_classifier_and_generator_see_them(make_experiment):
    experiment = make_experiment()
    real = experiment.split.real
    np.testing.assert_array_equal(experiment.real.inputs, real.images)
    np.testing.assert_array_equal(experiment.real.labels, real.labels)
    np.testing.assert_array_equal(experiment.real.weights, np.ones(4))
    assert experiment.real.num_classes == 2
    shots = experiment.generator_shots
    assert shots.shape == (4, 16, 16, 3) and shots.dtype == np.uint8
    np.testing.assert_allclose(shots, np.repeat(to_uint8(resize(to_float(real.images), 16)), 3, axis=-1), atol=1)


def test_a_classifier_sees_a_pool_as_it_sees_its_own_images(make_experiment):
    experiment = make_experiment()
    pool = random_pool(5)
    examples = experiment.examples(pool)
    # 16×16 in colour becomes 8×8 in grey.
    means = to_float(pool.images).reshape(5, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    assert examples.inputs.shape == (5, 8, 8, 1)
    grey = np.asarray(examples.inputs)[..., 0]
    assert np.corrcoef(grey.ravel(), (means @ [0.299, 0.587, 0.114]).ravel())[0, 1] > 0.9
    np.testing.assert_allclose(examples.inputs, experiment.classifier_input.images(to_float(pool.images)), atol=1e-6)
    np.testing.assert_array_equal(examples.targets, pool.labels)
    np.testing.assert_array_equal(examples.weights, np.ones(5))
    assert examples.attributes is None and examples.num_classes == 2


def test_the_attributes_of_prompts_that_vary_are_known(make_experiment):
    experiment = make_experiment(prompts__attributes="thin|bold,small|large|huge")
    pool = random_pool(4, NamedPool(holds_attributes=True))
    prompts = ["a digit", "a digit, bold", "a digit, thin, huge", None]
    records = tuple(
        dataclasses.replace(record, prompt=prompt) for record, prompt in zip(pool.records, prompts, strict=True)
    )
    pool = dataclasses.replace(pool, pool=dataclasses.replace(pool.pool, records=records))
    expected = [
        # absent, thin, bold; absent, small, large, huge
        [1, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 1],
        [1, 0, 0, 1, 0, 0, 0],
    ]
    np.testing.assert_array_equal(experiment.examples(pool).attributes, expected)


def test_weights_of_training_data_have_mean_1(make_experiment):
    experiment = make_experiment()
    pool = random_pool(4)
    values = PoolValues(np.array([0.1, 0.2, 0.3, 0.0], np.float32))
    data = experiment.training_data(pool, values)
    np.testing.assert_allclose(data.synthetic.weights, [2 / 3, 4 / 3, 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(data.synthetic.targets, pool.labels)
    np.testing.assert_array_equal(data.synthetic.inputs, experiment.examples(pool).inputs)
    assert data.pool is pool and data.values is values


def test_soft_labels_are_trained_on_in_place_of_the_labels(make_experiment):
    experiment = make_experiment()
    soft = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], np.float32)
    data = experiment.training_data(random_pool(3), PoolValues(np.ones(3, np.float32), soft_labels=soft))
    np.testing.assert_array_equal(data.synthetic.targets, soft)


@dataclasses.dataclass(frozen=True)
class CountedPool(NamedPool):
    """A spec that notes in `BUILT` when it is built."""

    def build(self, experiment):
        BUILT.append((self, experiment))
        return random_pool(2, self)


BUILT: list = []


def test_equal_specs_share_a_pool(make_experiment):
    BUILT.clear()
    experiment = make_experiment()
    first = experiment.pool(CountedPool("a"))
    assert experiment.pool(CountedPool("a")) is first and first.spec == CountedPool("a")
    assert experiment.pool(CountedPool("b")) is not first
    assert [spec.name for spec, _ in BUILT] == ["a", "b"] and all(each is experiment for _, each in BUILT)


def test_the_pool_of_the_runs_own_method_stands_above_the_others(make_experiment, tmp_path):
    experiment = make_experiment("vanilla")
    own = experiment.methods[-1].pool
    assert experiment.pool_folder(own) == tmp_path / "run" / "pool" / "round_00"
    assert experiment.pool_folder(own, 12) == tmp_path / "run" / "pool" / "round_12"
    assert experiment.pool_folder(NamedPool(), 1) == tmp_path / "run" / "pool" / "named" / "round_01"
    assert experiment.shotless_folder(NamedPool(of_shots=False)) is None
    assert experiment.stages._folder == tmp_path / "run" / "checkpoints"


def test_runs_of_a_comparison_share_pools_by_what_has_a_part_in_them(make_experiment, tmp_path):
    shared = shared_dirs(tmp_path)
    experiment = make_experiment("vanilla", shared=shared)
    assert experiment.pool_folder(PlainPool()) == tmp_path / "shotless" / "plain" / "round_00"
    assert experiment.pool_folder(NamedPool(), 2) == tmp_path / "pools" / "named" / "round_02"
    assert experiment.shotless_folder(NamedPool()) is None
    assert experiment.shotless_folder(NamedPool(of_shots=False)) == tmp_path / "shotless"
    assert experiment.pool_folder(NamedPool(of_shots=False)) == tmp_path / "shotless" / "named" / "round_00"
    assert experiment.stages._folder == tmp_path / "stages"


# What a run leaves


@pytest.fixture
def report(monkeypatch):
    """The arguments of the report; no figure is drawn, and nothing is collected for it."""
    calls = []
    monkeypatch.setattr(experiment_module, "report_data", lambda *arguments: arguments)
    monkeypatch.setattr(experiment_module, "changes", lambda data: ["changed most"])

    def write(*arguments):
        calls.append(arguments)
        return arguments[0] / "report" / "index.html"

    monkeypatch.setattr(experiment_module, "write_results", write)
    return calls


def finished(experiment, values, monkeypatch, **accuracy):
    """Finishes a run whose plain pool is on disk; returns the summary."""
    pool = random_pool(6)
    records = pool.records
    writer = PoolWriter(experiment.pool_folder(pool.spec), experiment.split.real.class_names)
    writer.append(to_float(pool.images), records)
    monkeypatch.setattr(experiment.classifiers, "real", lambda: {})
    monkeypatch.setattr(experiment.classifiers, "train", lambda method, synthetic: {})
    in_training = SaflexClassifier({}, values.weights, values.soft_labels)
    monkeypatch.setattr(experiment.classifiers, "train_saflex", lambda method, synthetic: in_training)
    monkeypatch.setattr(experiment.classifiers, "train_saflex_on_synthetic", lambda method, synthetic: in_training)
    monkeypatch.setattr(experiment.classifiers, "real_difficulty", lambda: np.array([0.1, 0.2, 0.3, 0.4]))
    experiment.stages.seconds["pool_plain"] = 1.5
    monkeypatch.setattr(experiment.classifiers, "train_on_synthetic", lambda method, synthetic: {})
    monkeypatch.setattr(experiment.classifiers, "evaluate", lambda method, params: Evaluation(accuracy[method.name]))
    monkeypatch.setattr(experiment.classifiers, "evaluate_on_synthetic", lambda method, params: Evaluation(0.5))
    found = {}
    for method in experiment.methods:
        # What SAFLEX finds, it finds in training.
        before = PoolValues(np.ones(6), difficulty=values.difficulty) if method.name == "saflex" else values
        data = TrainingData() if method.pool is None else experiment.training_data(pool, before)
        found[method.name] = experiment.train_and_test(method, data)
    return experiment.finish(found)


VALUES = PoolValues(
    np.linspace(0.1, 0.6, 6, dtype=np.float32),
    soft_labels=np.stack([np.linspace(0, 1, 6), 1 - np.linspace(0, 1, 6)], axis=1).astype(np.float32),
    difficulty=np.linspace(0.9, 0.4, 6, dtype=np.float32),
)


def test_a_run_of_its_own_leaves_summary_report_and_the_values_beside_the_images(
    make_experiment, monkeypatch, report, capsys
):
    experiment = make_experiment("saflex", baselines="vanilla", data__max_test=18)
    summary = finished(experiment, VALUES, monkeypatch, real=0.25, vanilla=0.5, saflex=0.75)
    assert summary == {
        "method": "saflex",
        "dataset": "digits",
        "shots": 2,
        "seed": 0,
        "trained_on": "real+synthetic",
        "accuracy": {"real_only": 0.25, "vanilla": 0.5, "final": 0.75},
        "accuracy_synthetic_only": {"vanilla": 0.5, "final": 0.5},
        "num_real": 4,
        "num_synthetic": 6,
        "num_test": 18,
        "seconds": {"pool_plain": 1.5},
        "versions": versions(),
    }
    assert json.loads((experiment.workdir / "summary.json").read_text()) == summary
    read = read_pool(experiment.pool_folder(METHODS["saflex"].pool))
    np.testing.assert_allclose([record.weight for record in read.records], VALUES.weights)
    np.testing.assert_allclose([record.difficulty for record in read.records], VALUES.difficulty)
    np.testing.assert_allclose([record.soft_label for record in read.records], VALUES.soft_labels)
    (arguments,) = report
    workdir, of_summary, (of, rows, data, plain_difficulty), pool = arguments
    assert (workdir, of_summary) == (experiment.workdir, summary) and of is experiment
    assert {row: each.final for row, each in rows.items()} == summary["accuracy"]
    assert data.values.weights is VALUES.weights and plain_difficulty is VALUES.difficulty
    assert pool.records == read.records  # with the values
    out = capsys.readouterr().out
    assert "75.0%" in out and f"report: {experiment.workdir / 'report' / 'index.html'}" in out


def test_values_that_are_not_known_are_not_noted(make_experiment, monkeypatch, report):
    experiment = make_experiment("vanilla")
    finished(experiment, PoolValues(np.ones(6)), monkeypatch, real=0.5, vanilla=0.5)
    records = read_pool(experiment.pool_folder(PlainPool())).records
    assert {(record.weight, record.difficulty, record.soft_label) for record in records} == {(1.0, None, None)}


def test_a_run_of_a_comparison_leaves_its_summary_alone(make_experiment, monkeypatch, report, capsys, tmp_path):
    experiment = make_experiment("saflex", shared=shared_dirs(tmp_path), also_synthetic_only=False)
    summary = finished(experiment, VALUES, monkeypatch, real=0.25, saflex=0.75)
    assert summary["accuracy"] == {"real_only": 0.25, "final": 0.75} and summary["num_synthetic"] == 6
    assert summary["accuracy_synthetic_only"] == {}
    assert json.loads((experiment.workdir / "summary.json").read_text()) == summary
    records = read_pool(experiment.pool_folder(METHODS["saflex"].pool)).records
    assert {(record.weight, record.difficulty, record.soft_label) for record in records} == {(None, None, None)}
    assert report == [] and capsys.readouterr().out == ""
    assert not (experiment.workdir / "report").exists()


def test_a_method_without_a_pool_reports_none(make_experiment, monkeypatch, report):
    experiment = make_experiment("real")
    assert experiment.folds == [] and experiment.real_only() == TrainingData(None, None, None)
    monkeypatch.setattr(experiment.classifiers, "real", lambda: {"weights": 1})
    monkeypatch.setattr(experiment.classifiers, "real_difficulty", lambda: np.zeros(4))
    monkeypatch.setattr(experiment.classifiers, "evaluate", lambda method, params: Evaluation(0.5 * params["weights"]))
    assert experiment.train_and_test(METHODS["real"], experiment.real_only()) == Accuracy(0.5)
    summary = experiment.finish({"real": Accuracy(0.5)})
    assert summary["num_synthetic"] == 0 and summary["accuracy"] == {"real_only": 0.5, "final": 0.5}
    assert summary["accuracy_synthetic_only"] == {}
    assert report[0][3] is None


@pytest.mark.parametrize(
    ("settings", "expected", "trained_on"),
    [
        ({}, Accuracy(0.25, 0.75), "real+synthetic"),
        ({"also_synthetic_only": False}, Accuracy(0.25), "real+synthetic"),
        # It is what the classifier is trained on anyway: there is nothing to train beside it.
        ({"classifier__synthetic_fraction": 1}, Accuracy(0.25, 0.25), "synthetic_only"),
    ],
)
def test_a_method_trains_on_its_own_synthetic_images(
    make_experiment, monkeypatch, report, settings, expected, trained_on
):
    experiment = make_experiment("vanilla", **settings)
    steps, calls = experiment.classifiers, []
    for name, result in (("train", 1), ("train_on_synthetic", 3), ("evaluate", 0.25), ("evaluate_on_synthetic", 0.25)):

        def step(*arguments, name=name, result=result):
            calls.append((name, *arguments))
            return Evaluation(result * arguments[-1]) if name.startswith("evaluate") else result

        monkeypatch.setattr(steps, name, step)
    data = experiment.training_data(random_pool(4), PoolValues(np.ones(4)))
    accuracy = experiment.train_and_test(METHODS["vanilla"], data)
    assert accuracy == expected
    trainings = [call for call in calls if call[0].startswith("train")]
    both = [(name, METHODS["vanilla"], data.synthetic) for name in ("train", "train_on_synthetic")]
    assert trainings == both[: 2 if expected.synthetic_only == 0.75 else 1]
    del calls[:]
    assert experiment.train_and_test(METHODS["cutmix"], experiment.real_only()) == Accuracy(0.25)
    assert calls == [("train", METHODS["cutmix"], None), ("evaluate", METHODS["cutmix"], 1)]
    monkeypatch.setattr(steps, "real_difficulty", lambda: np.zeros(4))
    monkeypatch.setattr(experiment, "_note_values", lambda pool, values: pool.pool)
    assert experiment.finish({"real": Accuracy(0.5), "vanilla": accuracy})["trained_on"] == trained_on


def test_both_classifiers_are_trained_at_once_where_a_core_is_free(make_experiment, monkeypatch):
    experiment, both_train = make_experiment("vanilla"), threading.Barrier(2, timeout=30)
    monkeypatch.setattr(experiment_module, "num_threads", lambda config, *images: 2)

    def train(*arguments):
        both_train.wait()  # breaks unless the other one trains too
        return len(arguments)

    for name in ("train", "train_on_synthetic"):
        monkeypatch.setattr(experiment.classifiers, name, train)
    for name in ("evaluate", "evaluate_on_synthetic"):
        monkeypatch.setattr(experiment.classifiers, name, lambda method, params: Evaluation(params / 4))
    data = experiment.training_data(random_pool(4), PoolValues(np.ones(4)))
    assert experiment.train_and_test(METHODS["vanilla"], data) == Accuracy(0.5, 0.5)


def test_a_run_of_real_images_has_no_generator_and_says_so(make_experiment):
    with pytest.raises(RuntimeError, match="no method of this run has synthetic images"):
        _ = make_experiment("real").generator


def test_the_generators_architecture_is_known_before_its_weights_are_read(make_experiment):
    experiment = make_experiment()
    assert (experiment.generator.checkpoint / "model_index.json").is_file()
    assert experiment.generator.architecture.image_encoder is not None and "sd" not in vars(experiment.adapters)
