"""The wheel holds all that a run needs: built, installed into a new environment and run in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# All stages, few steps; quick to compile, for one device.
SMALL = ("generator.steps=2", "pool.images_per_class=1", "classifier.steps=2", "also_synthetic_only=False")
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
PACKAGED = ("utilgen_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(*command, **options):
    completed = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.mark.slow
def test_the_installed_command_runs_a_config_by_its_name_in_an_empty_folder(tmp_path):
    # A copy, for the build leaves folders behind.
    source = tmp_path / "source"
    source.mkdir()
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")

    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, *pip, "--python", python, "install", "--no-deps", wheel)
    # What it needs is in the tests' own environment; it would take minutes to install again.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    empty = tmp_path / "empty"
    empty.mkdir()
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XLA_FLAGS": FLAGS}
    where = run(python, "-c", "import utilgen_jax; print(utilgen_jax.__file__)", cwd=empty, env=settings).strip()
    assert Path(where).is_relative_to(environment)
    command = environment / "bin" / "utilgen"
    assert "cifar, digits" in run(command, "--help", cwd=empty, env=settings)
    fields = [f"--config.{field}" for field in SMALL]
    printed = run(command, "--config=digits:runlocal,method=vanilla", *fields, cwd=empty, env=settings)
    assert printed.startswith("workdir: runs/digits-vanilla-2shots-seed0\n")
    summary = json.loads((empty / "runs" / "digits-vanilla-2shots-seed0" / "summary.json").read_text())
    assert "vanilla" in json.dumps(summary)
    assert list(empty.iterdir()) == [empty / "runs"]
