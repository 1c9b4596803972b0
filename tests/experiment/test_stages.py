import threading
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from utilgen_jax.errors import InputError
from utilgen_jax.experiment.stages import StageCache, read_result, step
from utilgen_jax.runtime import termination
from utilgen_jax.runtime.state_folder import Saving
from utilgen_jax.runtime.threads import run_at_once
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.cross_fit import PoolValues


def result():
    return {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "scalar": np.array(0.25),
        "count": 3,
        "jax": jnp.arange(4),
        "head": {"kernel": np.ones((1, 2), np.int32)},
        "empty": np.zeros((0, 3)),
    }


def never():
    raise AssertionError("a finished stage was run again")


def test_a_finished_stage_is_not_run_again(tmp_path, capsys):
    folder = tmp_path / "new" / "checkpoints"
    first = StageCache(folder).run("train", dict, result)
    assert capsys.readouterr().err == ""
    again = StageCache(folder).run("train", dict, never)
    assert "train: done before" in capsys.readouterr().err
    assert first.keys() == again.keys() == result().keys()
    flat = flatten_dict(result(), sep="/")
    for name, value in flat.items():
        for found in (flatten_dict(first, sep="/")[name], flatten_dict(again, sep="/")[name]):
            assert isinstance(found, np.ndarray) and found.dtype == np.asarray(value).dtype
            assert found.shape == np.shape(value)
            np.testing.assert_array_equal(found, value)
    assert [file.name for file in folder.iterdir()] == ["train.safetensors"]
    np.testing.assert_array_equal(read_result(folder / "train.safetensors", dict)["jax"], np.arange(4))
    assert load_file(folder / "train.safetensors").keys() == flat.keys()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (float, 0.25),
        (np.ndarray, np.arange(6.0).reshape(2, 3)),
        (PoolValues, PoolValues(np.ones(3), soft_labels=np.eye(3), fold_models={"weighting": {"a": np.zeros((2, 1))}})),
    ],
)
def test_results_of_other_kinds_come_back_as_they_are(tmp_path, kind, value):
    for compute in (lambda: value, never):
        found = StageCache(tmp_path).run("stage", kind, compute)
        assert isinstance(found, kind)
        jax.tree.map(np.testing.assert_array_equal, found, value)


def test_within_a_run_a_result_is_not_read_again(tmp_path, capsys):
    stages = StageCache(tmp_path)
    first = stages.run("train", dict, result)
    assert stages.run("train", dict, never) is first and capsys.readouterr().err == ""


class Steps:
    """Steps of an experiment that has nothing but a cache."""

    def __init__(self, folder):
        self.experiment = types.SimpleNamespace(stages=StageCache(folder))
        self.calls = []

    @step("scaled_{spec.name}_{factor}", np.ndarray)
    def scale(self, spec, factor=2):
        """Scales."""
        self.calls.append(self.experiment.stages.current)
        return factor * spec.values


def test_a_step_is_named_by_its_arguments_and_runs_once(tmp_path):
    spec, steps = types.SimpleNamespace(name="mine", values=np.arange(3)), Steps(tmp_path)
    np.testing.assert_array_equal(steps.scale(spec), [0, 2, 4])
    np.testing.assert_array_equal(steps.scale(spec, factor=3), [0, 3, 6])
    np.testing.assert_array_equal(steps.scale(spec=spec), [0, 2, 4])
    assert steps.calls == ["scaled_mine_2", "scaled_mine_3"] and steps.experiment.stages.current == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.safetensors" for name in steps.calls]
    assert Steps.scale.__doc__ == "Scales."


def test_threads_run_stages_at_once_each_under_its_own_name(tmp_path):
    stages, both_run = StageCache(tmp_path), threading.Barrier(2, timeout=30)

    def compute():
        both_run.wait()
        return {"name": np.frombuffer(stages.current.encode(), np.uint8)}

    found = run_at_once([partial(stages.run, name, dict, compute) for name in ("one", "two")])
    assert [bytes(result["name"]) for result in found] == [b"one", b"two"] and stages.current == ""


def test_stages_are_kept_apart(tmp_path):
    stages = StageCache(tmp_path)
    stages.run("one", dict, lambda: {"x": np.array([1])})
    stages.run("two", dict, lambda: {"x": np.array([2])})
    assert [StageCache(tmp_path).run(name, dict, never)["x"].item() for name in ("one", "two")] == [1, 2]


def test_seconds_are_those_of_the_first_time(tmp_path, monkeypatch):
    result()  # compiles, which looks at the clock too
    clock = iter([100.0, 112.349])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    first = StageCache(tmp_path)
    first.run("train", dict, result)
    again = StageCache(tmp_path)
    again.run("train", dict, never)
    assert first.seconds == again.seconds == {"train": 12.35}


def test_a_stage_that_raises_leaves_nothing(tmp_path):
    def broken():
        raise FloatingPointError("loss is nan")

    stages = StageCache(tmp_path)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        stages.run("train", dict, broken)
    assert list(tmp_path.iterdir()) == [] and stages.seconds == {}
    assert stages.run("train", dict, result)["count"] == 3


def test_an_interrupted_write_is_no_result(tmp_path, monkeypatch):
    def full(arrays, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("utilgen_jax.experiment.stages.save_file", full)
        StageCache(tmp_path).run("train", dict, result)
    assert not (tmp_path / "train.safetensors").exists()
    StageCache(tmp_path).run("train", dict, result)
    assert [file.name for file in tmp_path.iterdir()] == ["train.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no seconds", "not a number"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "train.safetensors"
    StageCache(tmp_path).run("train", dict, result)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage in ("garbage", "empty"):
        file.write_bytes(b"\xff" * 100 if damage == "garbage" else b"")
    else:
        save_file({"x": np.zeros(1)}, file, metadata=None if damage == "no seconds" else {"seconds": "many"})
    with pytest.raises(InputError, match="remove the file to compute it again") as caught:
        StageCache(tmp_path).run("train", dict, never)
    assert str(file) in str(caught.value)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    folder = tmp_path / "checkpoints"
    assert StageCache(folder).run("train", dict, result)["count"] == 3
    assert not folder.exists()


def counted(stages, seen, cut_after=9):
    """A stage of five steps that ends after `cut_after`; adds the steps that it does to `seen`."""

    def on_step(step, loss):
        seen.append(step)
        if step == cut_after:
            raise KeyboardInterrupt

    def compute():
        loop = TrainingLoop(on_step, stages.saved)
        return loop.run({"x": np.zeros(1)}, 5, lambda state, step: ({"x": 3 * state["x"] + step}, {"loss": 0.0}))

    return stages.run("train", dict, compute)


def test_a_stage_that_was_cut_off_goes_on_and_leaves_nothing_beside_its_result(tmp_path, capsys):
    saving, seen = Saving(every_seconds=0.0), []
    with pytest.raises(KeyboardInterrupt):
        counted(StageCache(tmp_path, saving), seen, cut_after=4)
    assert [file.name for file in tmp_path.iterdir()] == ["train.partial"]
    result = counted(StageCache(tmp_path, saving), seen)
    assert seen == [1, 2, 3, 4, 4, 5] and "train: goes on after step 3 of 5" in capsys.readouterr().err
    np.testing.assert_array_equal(result["x"], counted(StageCache(tmp_path / "other"), [])["x"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "train.safetensors"]


def test_a_state_beside_a_result_goes(tmp_path):
    StageCache(tmp_path).run("train", dict, result)
    (tmp_path / "train.partial").mkdir()  # killed just before it was removed
    StageCache(tmp_path).run("train", dict, never)
    assert [file.name for file in tmp_path.iterdir()] == ["train.safetensors"]


def test_no_state_without_a_stage(tmp_path):
    with pytest.raises(RuntimeError, match="no stage is computed"):
        StageCache(tmp_path).saved  # noqa: B018


def test_after_sigterm_no_stage_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(termination._requested, "is_set", lambda: True)
    with pytest.raises(termination.Terminated):
        StageCache(tmp_path).run("train", dict, never)
