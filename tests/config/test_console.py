"""A command whose output cannot be written does its work all the same, and leaves without a traceback."""

import contextlib
import errno
import os
import pty
import subprocess
import sys

import pytest
from jax.errors import JaxRuntimeError

from utilgen_jax.config.command_line import exit_status, folder_problems
from utilgen_jax.config.console import as_message

# A run in small: it prints while it works, and its work is whole at the end.
RUN = """
import sys
from pathlib import Path
from utilgen_jax.config.command_line import exit_status

def work():
    for step in range(2000):
        print(f"± step {step} – of 2000", flush=step % 100 == 0)
        print(f"± step {step}", file=sys.stderr)
    Path("done").write_text("done")
    print("accuracy: 97 %")

sys.exit(exit_status(work, "nothing was kept"))
"""


@pytest.mark.parametrize(
    ("streams", "status"),
    [
        ("| head -1", 0),
        ("2>&1 | true", 0),
        ("> /dev/full", 2),
        ("2> /dev/full", 0),
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_work_is_done_wherever_the_output_goes(tmp_path, streams, status, encoding):
    (tmp_path / "run.py").write_text(RUN)
    command = f"set -o pipefail; {sys.executable} run.py {streams}"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "done").read_text() == "done"
    assert done.returncode == status
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    told = [line for line in done.stderr.splitlines() if b" step " not in line]
    if status:
        assert told == [b"error: standard output cannot be written: [Errno 28] No space left on device"]
    else:
        assert told == []
    if streams == "| head -1":
        assert done.stdout.decode() == ("± step 0 – of 2000\n" if encoding == "utf-8" else "? step 0 ? of 2000\n")


def test_a_person_at_a_terminal_can_be_asked(tmp_path):
    code = "import sys; from utilgen_jax.config.command_line import exit_status as run\n"
    code += "sys.exit(run(lambda: print('heard', input('go on? ').upper()), ''))"
    parent, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=child, stdout=child, stderr=child) as asked:
        os.close(child)
        heard = os.read(parent, 100)
        os.write(parent, b"yes\n")
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(parent, 100):
                heard += part
    os.close(parent)
    assert asked.returncode == 0 and b"go on? " in heard and b"heard YES" in heard


def failing(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a"),
            "a: No space left on device; make room, and the same command continues",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, error, line):
    assert exit_status(failing(error), "nothing was kept") == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBuffers"),
            "RESOURCE_EXHAUSTED: Out of",
        ),
        (MemoryError(), "no more memory"),
    ],
)
def test_too_little_memory_is_one_line(capsys, error, told):
    assert exit_status(failing(error), "nothing was kept") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}") and "take smaller batches" in line


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_bugs_are_raised(error):
    assert as_message(error) is None
    with pytest.raises(type(error), match="a bug"):
        exit_status(failing(error), "nothing was kept")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("JAX_PLATFORMS", "nonesuch", "JAX does not start: Unable to initialize backend 'nonesuch'"),
        ("JAX_ENABLE_X64", "perhaps", "JAX does not start: invalid truth value 'perhaps' for environment"),
    ],
)
def test_what_keeps_jax_from_starting_is_one_line(name, value, told):
    code = "import sys; from utilgen_jax.config.command_line import exit_status as run\n"
    code += "def start():\n    import jax\n    jax.devices()\nsys.exit(run(start, ''))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {name: value}, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert line.startswith(f"error: {told}") and "Traceback" not in done.stderr


def test_folders_that_cannot_be_written_are_told_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "good").symlink_to(tmp_path)
    text = "is, or lies under, a file; give a folder"
    for name in ("file", "file/run"):
        assert folder_problems("out", f"{tmp_path}/{name}") == [f"--out: {tmp_path}/{name} {text}"]
    for name in ("link", "link/run"):
        (problem,) = folder_problems("out", f"{tmp_path}/{name}")
        assert problem.endswith("is, or lies under, a link to nowhere, which does not exist; give a folder")
    (problem,) = folder_problems("out", f"{tmp_path}/{'x' * 300}")
    assert problem.endswith("x File name too long")
    for name in ("", "new", "new/run", "good", "good/run"):
        assert folder_problems("out", f"{tmp_path}/{name}") == []
    assert folder_problems("out", None) == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests' user may write everywhere
    (problem,) = folder_problems("out", f"{tmp_path}/new/run")
    assert problem.endswith(f"cannot be written: {tmp_path} is read-only for you; give another folder")
