"""Whole runs in a shell: what happens to their output, their disk and their processes loses no work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIELDS = ("classifier.steps=2", "classifier.name=mlp", "data.max_test=20")
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # quick to compile, for one device
COMMAND = [sys.executable, "-m", "utilgen_jax.main", f"--config={ROOT / 'configs' / 'digits.py'}:method=real"]
COMMAND += [f"--config.{field}" for field in FIELDS]
pytestmark = pytest.mark.slow


def shell(cwd, before="", after=""):
    """Runs the command with something before and behind it; (exit status, standard error)."""
    command = f"set -o pipefail; {before} {' '.join(COMMAND)} --workdir=run {after}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
    done = subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def result(folder):
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name != "seconds"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    assert shell(folder)[0] == 0
    return folder


@pytest.mark.parametrize("after", ["| head -1", "> /dev/full", ">&- 2>&-"])
def test_output_that_cannot_be_written_loses_nothing(tmp_path, whole, after):
    assert shell(tmp_path, after=after)[0] == (2 if "full" in after else 0)
    assert result(tmp_path) == result(whole)
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_after_a_full_disk_the_same_command_ends_the_same(tmp_path, whole):
    status, told = shell(tmp_path, before="ulimit -f 2;")  # files of 2 KiB at most: the config is larger
    assert status == 2
    assert told.splitlines()[-1] == "error: run/config.json: File too large; make room, and the same command continues"
    status, told = shell(tmp_path, before="ulimit -f 40;")  # the report is larger
    assert status == 2 and "File too large; make room, and the same command continues" in told.splitlines()[-1]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert shell(tmp_path)[0] == 0
    assert result(tmp_path) == result(whole)


@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"]).returncode != 0, reason="may mount nothing")
def test_after_a_read_only_folder_the_same_command_ends_the_same(tmp_path, whole):
    for folder, message in (
        ("run", "error: --workdir: run cannot be written: run is read-only for you; give another folder"),
        ("run/checkpoints", "Read-only file system"),
    ):
        (tmp_path / folder).mkdir()
        mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec"
        status, told = shell(tmp_path, before=f"unshare -m bash -c '{mount} \"$@\"' --")
        assert status == 2 and message in told.splitlines()[-1]
        assert [*(tmp_path / folder).iterdir()] == []
    assert shell(tmp_path)[0] == 0
    assert result(tmp_path) == result(whole)


def test_a_runs_files_have_the_umasks_mode_and_no_lock_is_left(tmp_path):
    assert shell(tmp_path, before="umask 027;")[0] == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
    assert not (tmp_path / "run" / ".lock").exists()
