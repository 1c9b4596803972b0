"""States of trainings on disk, and the loop that keeps them there."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cut_off import assert_goes_on
from utilgen_jax.errors import InputError
from utilgen_jax.runtime import state_folder, termination
from utilgen_jax.runtime.saved_state import SavedState
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.runtime.training_loop import TrainingLoop

START = {"weight": jnp.zeros(2), "none": None, "empty": {}, "count": np.zeros(1, np.uint64)}


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(state_folder, "time", clock)
    return clock


def folder(tmp_path, every_seconds=10.0, **identity):
    return StateFolder(tmp_path / "stage.partial", Saving(every_seconds, identity))


def update(state, step):
    return state | {"weight": 2 * state["weight"] + step, "count": state["count"] + 1}, {"loss": jnp.zeros(())}


def state_after(steps):
    return TrainingLoop().run(START, steps, update)


def test_a_loop_goes_on_after_the_last_step_that_was_saved(tmp_path):
    assert_goes_on(lambda loop: loop.run(START, 5, update), tmp_path, cut_after=3)
    assert_goes_on(lambda loop: loop.part("one").part("first", done=7).run(START, 5, update), tmp_path, cut_after=9)


def test_a_training_may_end_before_its_last_step(tmp_path):
    def train(loop):
        return loop.run(START, 10, update, is_over=lambda state: state["count"][0] == 4)

    assert train(TrainingLoop())["count"] == 4
    assert_goes_on(train, tmp_path, cut_after=4)


def test_a_save_is_due_once_in_a_period(tmp_path, clock):
    states = folder(tmp_path)
    saved = SavedState(states)
    assert saved.restored(START) == (0, START)
    on_disk = []
    for step in range(1, 9):
        clock.now += 4
        saved.keep(step, state_after(step))
        on_disk.append(SavedState(folder(tmp_path)).restored(START)[0])
    assert on_disk == [0, 0, 3, 3, 5, 5, 5, 8]  # after 12, 20 and 32 seconds


def test_a_part_that_has_ended_is_saved_with_the_next_one_that_runs(tmp_path, clock):
    states = folder(tmp_path)
    first, second = (SavedState(states).part(name) for name in ("first", "second"))
    first.restored(START)
    clock.now += 6
    first.finish(4, state_after(4))
    assert not states.folder.exists()
    second.restored(START)
    clock.now += 6
    second.keep(1, state_after(1))
    again = folder(tmp_path)
    assert [SavedState(again, name).restored(START)[0] for name in ("first", "second")] == [4, 1]
    clock.now += 10
    SavedState(states, "third").finish(2, state_after(2))  # nothing else may come
    assert SavedState(again, "third").restored(START)[0] == 2


def test_of_a_training_that_has_ended_a_copy_is_kept(tmp_path, clock):
    states = folder(tmp_path)
    part, state = SavedState(states, "part"), state_after(3)
    part.restored(START)
    part.finish(3, state)
    expected = np.array(state["weight"])
    jax.jit(lambda weight: weight + 1, donate_argnums=0)(state["weight"])  # a step takes over its memory
    clock.now += 10
    SavedState(states, "other").finish(1, START)
    np.testing.assert_array_equal(SavedState(folder(tmp_path), "part").restored(START)[1]["weight"], expected)


def test_two_trainings_may_not_share_a_name(tmp_path):
    states = folder(tmp_path)
    SavedState(states).restored(START)
    with pytest.raises(RuntimeError, match="two trainings"):
        SavedState(states).restored(START)


def test_parts_in_threads_keep_their_own(tmp_path):
    states = folder(tmp_path, every_seconds=0.0)
    loop, results = TrainingLoop(saved=SavedState(states)), {}

    def train(name):
        results[name] = loop.part(name).run(START, 3 + int(name), update)

    threads = [threading.Thread(target=train, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = folder(tmp_path)
    for number in range(3):
        step, state = SavedState(again, str(number)).restored(START)
        assert step == 3 + number
        jax.tree.map(np.testing.assert_array_equal, state, results[str(number)])


def kept(tmp_path, **identity):
    """Leaves a state after step 2."""
    saved = SavedState(folder(tmp_path, every_seconds=0.0, **identity))
    saved.restored(START)
    saved.keep(2, state_after(2))


def test_a_state_of_another_run_is_not_continued(tmp_path, capsys):
    kept(tmp_path, config="a", jax="1")
    saved = SavedState(folder(tmp_path, config="b", jax="1"))
    assert saved.restored(START) == (0, START)
    assert "stage: begun anew, as its saved state is of another run: config a before, b now" in capsys.readouterr().err
    assert not (tmp_path / "stage.partial").exists()


def test_on_other_devices_it_goes_on_and_says_so(tmp_path, capsys, monkeypatch):
    kept(tmp_path)
    monkeypatch.setattr(state_folder, "_devices", lambda: "4 × TPU v5e")
    assert SavedState(folder(tmp_path)).restored(START)[0] == 2
    assert "stage: continues on 4 × TPU v5e, before on" in capsys.readouterr().err


def test_what_is_damaged_or_of_another_shape_is_refused_with_the_way_out(tmp_path):
    kept(tmp_path)
    with pytest.raises(InputError, match="remove the folder to start afresh"):
        SavedState(folder(tmp_path)).restored(START | {"weight": jnp.zeros(3)})
    with pytest.raises(InputError, match="remove the folder to start afresh"):
        SavedState(folder(tmp_path)).restored({"other": jnp.zeros(2)})
    (tmp_path / "stage.partial" / "about.json").write_text("{}")
    with pytest.raises(InputError, match=r"remove .*stage\.partial to begin it anew"):
        SavedState(folder(tmp_path)).restored(START)


def test_a_folder_without_a_state_is_nothing(tmp_path):
    (tmp_path / "stage.partial").mkdir()
    (tmp_path / "stage.partial" / ".about.json.partial").write_text("{")
    assert SavedState(folder(tmp_path)).restored(START) == (0, START)
    assert not (tmp_path / "stage.partial").exists()


def test_seconds_are_those_of_all_runs(tmp_path, clock):
    for expected in (0, 15, 30):
        states = folder(tmp_path)
        saved = SavedState(states)
        saved.restored(START)
        assert states.seconds_before == expected
        clock.now += 15
        saved.keep(1, START)
    assert json.loads((tmp_path / "stage.partial" / "about.json").read_text())["seconds"] == 45


def test_after_sigterm_all_is_saved_and_the_loop_ends(tmp_path, monkeypatch):
    loop = TrainingLoop(saved=SavedState(folder(tmp_path, every_seconds=1e9)))
    loop.part("ended").run(START, 2, update)

    def update_and_request(state, step):
        if step == 3:
            monkeypatch.setattr(termination._requested, "is_set", lambda: True)
        return update(state, step)

    with pytest.raises(termination.Terminated):
        loop.part("running").run(START, 9, update_and_request)
    monkeypatch.undo()
    again = folder(tmp_path)
    assert [SavedState(again, name).restored(START)[0] for name in ("ended", "running")] == [2, 4]


def test_a_loss_that_stops_the_run_is_not_saved(tmp_path):
    def stop(step, loss):
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        TrainingLoop(stop, SavedState(folder(tmp_path, every_seconds=0.0))).run(START, 3, update)
    assert not (tmp_path / "stage.partial").exists()
