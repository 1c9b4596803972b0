"""utilgen_jax/README.md: the method that it adds in one file is added, word by word, and runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # quick to compile, for one device
TINY = ("generator.steps=2", "pool.images_per_class=2", "classifier.steps=3", "classifier.name=mlp", "data.max_test=20")


@pytest.mark.slow
def test_a_method_is_added_in_one_file(tmp_path):
    package = tmp_path / "utilgen_jax"
    shutil.copytree(ROOT / "utilgen_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = re.findall(r"```python\n(\"{3}.*?)```", (ROOT / "utilgen_jax" / "README.md").read_text(), re.DOTALL)
    (package / "methods" / "sdedit.py").write_text(code)
    registry = package / "methods" / "__init__.py"
    text = registry.read_text()
    text = text.replace("_FILES = (baselines, ", "_FILES = (baselines, sdedit, ")
    registry.write_text(text.replace("    saflex,\n", "    saflex,\n    sdedit,\n"))
    command = [sys.executable, "-m", "utilgen_jax.main", f"--config={ROOT / 'configs/digits.py'}:method=sdedit"]
    command += [f"--config.{field}" for field in (*TINY, "sdedit.strength=0.5")]
    options = {"cwd": tmp_path, "env": os.environ | {"XLA_FLAGS": FLAGS}, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--workdir=run"], **options)
    assert done.returncode == 0, done.stderr
    assert "+ synthetic images, SDEdit" in done.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sdedit"] == {"strength": 0.5}
    records = [json.loads(line) for line in (tmp_path / "run/pool/round_00/metadata.jsonl").read_text().splitlines()]
    assert len(records) == 20
    wrong = subprocess.run([*command, "--config.sdedit.strength=2"], **options)
    assert wrong.returncode == 2 and "config.sdedit.strength: must be at most 1.0" in wrong.stderr
