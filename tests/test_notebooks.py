"""The notebooks run from top to bottom, on the real job shrunk."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "colabs/01_quickstart.ipynb"
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
FIELDS = {
    "method": "vanilla",  # compiles in half of joint's time, and nothing in the notebook is of one method
    "data.max_test": 20,
    "generator.steps": 2,
    "generator.batch_size": 20,
    "pool.images_per_class": 2,
    "classifier.name": "mlp",
    "classifier.steps": 4,
    "classifier.width": 8,
}
# Of the others.
TINY = {
    "classes": 2,
    "most": 14,
    "steps": 2,
    "updates": 2,
    "rate": 0.03,
    "sampler_steps": 2,
    "batch_size": 10,
    "train_batch": 4,
    "images": 2,
    "repeats": 3,
    "points": 2,
    "each": 1,
    "fields": {
        "also_synthetic_only": False,
        "data__max_classes": 2,
        "data__max_test": 20,
        "generator__steps": 2,
        "generator__batch_size": 10,
        "pool__images_per_class": 2,
        "classifier__name": "mlp",
        "classifier__steps": 2,
    },
}


@pytest.fixture
def notebook_environment(tmp_path, monkeypatch):
    """What a kernel finds, one device as a notebook's."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # a notebook's, not the tests' own
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return monkeypatch


def execute(notebook):
    """Runs a notebook; returns what it printed, and the data of what it showed."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(QUICKSTART.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    return printed, [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_linked(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert f"]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter packages
def test_quickstart_runs(tmp_path, notebook_environment):
    notebook_environment.setenv("UTILGEN_QUICKSTART_WORKDIR", str(tmp_path / "run"))
    overrides = " ".join(f"--config.{path}={value}" for path, value in FIELDS.items())
    notebook_environment.setenv("UTILGEN_QUICKSTART_OVERRIDES", overrides)
    printed, shown = execute(nbformat.read(QUICKSTART, as_version=4))
    assert "real images only" in printed and "with method vanilla" in printed
    assert any("image/png" in data for data in shown)
    assert any("iframe" in data.get("text/html", "") for data in shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter packages
def test_the_others_run_one_after_the_other_in_one_kernel(tmp_path, notebook_environment):
    settings = TINY | {"folder": str(tmp_path), "workdir": str(tmp_path / "on_devices")}
    notebook_environment.setenv("UTILGEN_NOTEBOOK", json.dumps(settings))
    joined = nbformat.v4.new_notebook()
    for path in NOTEBOOKS[1:]:
        cells = nbformat.read(path, as_version=4).cells
        joined.cells += [nbformat.v4.new_code_cell("%reset -f"), *[cell for cell in cells if cell.cell_type == "code"]]
    printed, shown = execute(joined)
    assert "+ images of the LoRA" in printed and (tmp_path / "my_run/report/index.html").is_file()
    assert len([*(tmp_path / "more_images").glob("*/*.png")]) == 4
    assert "wrong label: the soft label gives" in printed and "validation loss:" in printed
    assert "mean measured: 0.1:" in printed
    assert "mesh: {'data': 1, 'fsdp': 1}" in printed and "tpu-vm create utilgen" in printed
    assert len([data for data in shown if "image/png" in data]) >= 10
