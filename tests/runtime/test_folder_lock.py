"""One process at a time uses a folder."""

import signal
import socket
import subprocess
import sys

import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.folder_lock import LOCK, check_unlocked, locked_folder

HOLD = """
import sys
from pathlib import Path
from utilgen_jax.runtime.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / 'run'; it ends at the end of its input."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.parametrize("killed", [False, True])
def test_who_holds_it_is_told_and_a_process_that_ends_leaves_none_behind(tmp_path, holder, killed):
    folder = tmp_path / "run"
    for ask in (check_unlocked, lambda folder: locked_folder(folder).__enter__()):
        with pytest.raises(InputError) as caught:
            ask(folder)
        who = rf"process {holder.pid} on {socket.gethostname()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        assert caught.match(rf"{folder} is in use by another run \({who}\); wait for it, or take another folder")
    if killed:
        holder.send_signal(signal.SIGKILL)
    holder.stdin.close()
    holder.wait()
    check_unlocked(folder)
    with locked_folder(folder):
        assert (folder / LOCK).is_file()
    assert list(folder.iterdir()) == []


def test_a_process_may_hold_it_several_times(tmp_path):
    with locked_folder(tmp_path):
        with locked_folder(tmp_path / "."):
            check_unlocked(tmp_path)
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()


def test_to_look_makes_nothing(tmp_path):
    check_unlocked(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def flock(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_folder(tmp_path):
        pass
    assert "its file system has no locks" in capsys.readouterr().err
