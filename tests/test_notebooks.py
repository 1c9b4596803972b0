"""The notebooks run from top to bottom, on the real job shrunk."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "colabs/01_quickstart.ipynb"
FIELDS = {
    "generator.steps": 2,
    "generator.batch_size": 20,
    "pool.images_per_class": 2,
    "ensemble.members": 1,
    "joint.plain_steps": 4,
    "joint.steps": 4,
    "joint.sampler_steps": 1,
    "joint.gate_images": 1,
    "joint.gate_steps": 4,
    "classifier.steps": 4,
    "classifier.width": 8,
}


def test_quickstart_is_stored_without_outputs():
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter packages
def test_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("UTILGEN_QUICKSTART_WORKDIR", str(tmp_path / "run"))
    overrides = " ".join(f"--config.{path}={value}" for path, value in FIELDS.items())
    monkeypatch.setenv("UTILGEN_QUICKSTART_OVERRIDES", overrides)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as a notebook's
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # a notebook's, not the tests' own
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(QUICKSTART, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(QUICKSTART.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "real images only" in printed and "with method joint" in printed
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    assert any("image/png" in data for data in shown)
    assert any("iframe" in data.get("text/html", "") for data in shown)
