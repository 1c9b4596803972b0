"""A disk that is full, in small: no file may grow beyond a mebibyte. The error names the file that was written."""

import os
import resource

import numpy as np
import pytest
from safetensors.numpy import save_file

from utilgen_jax.config.console import as_message
from utilgen_jax.pool.records import METADATA, PoolRecord
from utilgen_jax.pool.storage import PoolWriter, read_pool
from utilgen_jax.report.metrics import MetricsWriter, read_metrics
from utilgen_jax.report.plots import plot_difficulty
from utilgen_jax.runtime import orbax_checkpoint
from utilgen_jax.runtime.atomic_write import append_text, replace_file, write_bytes
from utilgen_jax.runtime.folder_lock import LOCK, locked_folder

LIMIT = 2**20


@pytest.fixture
def full():
    """{call it: the disk is full from here on}; all is well again after the test, or after another call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_full(is_full=True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT if is_full else before[0], before[1]))

    yield set_full
    set_full(False)


def test_bytes(tmp_path, full):
    file = tmp_path / "a.bin"
    write_bytes(file, b"old")
    full()
    with pytest.raises(OSError) as caught:
        write_bytes(file, bytes(2 * LIMIT))
    assert as_message(caught.value) == f"{file}: File too large; make room, and the same command continues"
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_tensors(tmp_path, full):
    full()
    with pytest.raises(OSError) as caught, replace_file(tmp_path / "a.safetensors") as partial:
        save_file({"a": np.zeros(LIMIT)}, partial)
    assert caught.value.filename == str(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_lines(tmp_path, full):
    file = tmp_path / "a.jsonl"
    file.write_bytes(bytes(LIMIT - 5))
    full()
    with pytest.raises(OSError) as caught:
        append_text(file, "a long line\n")
    assert caught.value.filename == str(file)


def test_metrics_and_they_go_on(tmp_path, full):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, "stage", loss=1.0)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b" " * (LIMIT - len(whole) - 30) + b"\n")
    full()
    with pytest.raises(OSError) as caught, MetricsWriter(tmp_path) as metrics:
        metrics.write(2, "stage", loss=1.0)
    assert caught.value.filename == str(file)
    full(False)
    file.write_bytes(whole + file.read_bytes()[len(whole) :].lstrip())
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(2, "stage", loss=2.0)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 2.0]


def test_tensorboards_events(tmp_path, full, monkeypatch):
    monkeypatch.setattr("utilgen_jax.report.metrics._FLUSH_SECONDS", 0.0)
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(0, "stage", loss=1.0)
        (file,) = (tmp_path / "tensorboard").iterdir()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, hard))
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(OSError) as caught:
            for step in range(3):
                metrics.write(step, "s", **{name: 1.0 for name in "abcdefgh"})
        full(False)
    assert caught.value.filename == str(tmp_path / "tensorboard")


def test_a_pool_and_it_goes_on(tmp_path, full):
    images = np.random.default_rng(0).uniform(-1, 1, (4, 700, 700, 3)).astype(np.float32)
    records = [PoolRecord(label=0, prompt="it", seed=seed) for seed in range(4)]
    writer = PoolWriter(tmp_path, ["a"])
    writer.append(images[:2], records[:2])
    full()
    with pytest.raises(OSError) as caught:
        writer.append(images[2:], records[2:])
    assert caught.value.filename == str(tmp_path / "a" / "00002.png")
    full(False)
    writer = PoolWriter(tmp_path, ["a"])
    assert len(writer) == 2
    writer.append(images[2:], records[2:])
    assert len(read_pool(tmp_path).labels) == 4 and (tmp_path / METADATA).read_bytes().count(b"\n") == 4


def test_a_trainings_state_and_no_thread_writes_a_traceback(tmp_path, full, caplog, capfd):
    state = {"x": np.random.default_rng(0).random(LIMIT)}
    full()
    with pytest.raises(OSError) as caught:
        orbax_checkpoint.save(tmp_path / "state", state)
    assert caught.value.filename == str(tmp_path / "state")
    full(False)
    assert caplog.text == "" and "Traceback" not in capfd.readouterr().err
    orbax_checkpoint.save(tmp_path / "state", state)
    np.testing.assert_array_equal(orbax_checkpoint.restore(tmp_path / "state", state)["x"], state["x"])


def test_a_figure(tmp_path, full):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with pytest.raises(OSError) as caught:
            plot_difficulty({"real": np.array([0.1, 0.2])}, tmp_path / "a.png")
    finally:
        full(False)
    assert caught.value.filename == str(tmp_path / "a.png") and os.listdir(tmp_path) == []


def test_a_lock(tmp_path, full):
    (tmp_path / LOCK).write_bytes(b"")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with pytest.raises(OSError) as caught, locked_folder(tmp_path):
            pass
    finally:
        full(False)
    assert caught.value.filename == str(tmp_path / LOCK)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replace_file(tmp_path / "a.safetensors") as partial:
            save_file({"a": np.zeros(3)}, partial)
        write_bytes(tmp_path / "b", b"b")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask}
