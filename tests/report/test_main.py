"""`python -m utilgen_jax.report`: the page of a finished run, made anew from what is in its folder."""

import json
from dataclasses import fields

import numpy as np
import pytest

from tests.report.conftest import real_images, run_data, summary
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import PoolWriter
from utilgen_jax.report import __main__ as command
from utilgen_jax.report.data import load, save
from utilgen_jax.report.page import write_report


@pytest.fixture
def finished(tmp_path):
    """A run's folder without its page."""
    writer = PoolWriter(tmp_path / "pool" / "round_00", ("zero", "one"))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3))
    writer.append(images, [PoolRecord(label=n % 2, prompt="a photo", weight=0.5) for n in range(4)])
    save(tmp_path, run_data(pool="pool/round_00", predicted={"final": np.arange(3)}, test_labels=np.arange(3)))
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    return tmp_path


def test_the_page_is_that_of_the_run(finished, capsys):
    from utilgen_jax.pool.storage import read_pool

    page = write_report(finished, summary(), load(finished), read_pool(finished / "pool" / "round_00"))
    before = page.read_bytes()
    page.unlink()
    assert command.main(["report", f"--workdir={finished}"]) == 0
    assert page.read_bytes() == before and f"report: {page}" in capsys.readouterr().out


def test_what_is_kept_comes_back(tmp_path):
    data = run_data(real_images(), predicted={"final": np.arange(3)}, gate_gains=np.ones(2), changed=[["a", "1", "2"]])
    save(tmp_path, data)
    for field in fields(data):
        np.testing.assert_equal(getattr(load(tmp_path), field.name), _as_json(getattr(data, field.name)))


def _as_json(value):
    return list(value) if isinstance(value, tuple) and value else value


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "holds no finished run: it has no summary.json"),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json: cannot be read"),
        (lambda folder: (folder / "report" / "data.npz").unlink(), "the run is not finished, or of an earlier version"),
        (lambda folder: (folder / "report" / "data.npz").write_bytes(b"no zip"), "data.npz: cannot be read"),
        (lambda folder: (folder / "pool" / "round_00" / "metadata.jsonl").unlink(), "is no pool"),
        (
            lambda folder: (folder / "summary.json").rename(folder / "compare.json"),
            "holds a comparison, not a run: it has no summary.json",
        ),
    ],
)
def test_a_folder_that_is_no_finished_run_is_told(finished, capsys, spoil, message):
    spoil(finished)
    assert command.main(["report", f"--workdir={finished}"]) == 2
    assert message in capsys.readouterr().err and not (finished / "report" / "index.html").exists()


def test_a_pickle_is_not_loaded(finished, capsys):
    np.savez(finished / "report" / "data.npz", facts=np.array([{}], dtype=object))
    assert command.main(["report", f"--workdir={finished}"]) == 2
    assert "allow_pickle" in capsys.readouterr().err


def test_the_folder_is_required(capsys):
    assert command.main(["report"]) == 2
    assert "--workdir: required" in capsys.readouterr().err
