import json
from importlib import metadata

import jax
import pytest

import utilgen_jax
from utilgen_jax.config.schema import FIELDS, default_config, flatten, from_json, set_field
from utilgen_jax.config.validation import checked
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.workdir import open_workdir, versions, write_summary


def changed(**values):
    config = default_config()
    for path, value in values.items():
        set_field(config, path.replace("__", "."), value)
    return checked(config)


def test_a_new_folder_gets_the_config(tmp_path):
    folder = tmp_path / "a" / "b"
    config = changed(data__shots=5, baselines=())
    open_workdir(folder, config)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert from_json((folder / "config.json").read_text()) == flatten(config)
    open_workdir(folder, config)


def test_another_config_is_refused_by_its_fields(tmp_path):
    open_workdir(tmp_path, changed())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError) as caught:
        open_workdir(tmp_path, changed(data__shots=5, method="vanilla", log_every_steps=7))
    message = str(caught.value)
    assert str(tmp_path) in message and "take another folder" in message
    assert "config.data.shots: 2 before, 5 now" in message
    assert "config.method: 'joint' before, 'vanilla' now" in message
    assert message.count(" before, ") == 2
    assert (tmp_path / "config.json").read_bytes() == before


def test_fields_that_may_change_do_not_count(tmp_path):
    free = {
        path: not field.default if isinstance(field.default, bool) else 7
        for path, field in FIELDS.items()
        if field.may_change
    }
    assert {"log_every_steps", "parallel.data"} <= free.keys()
    open_workdir(tmp_path, changed())
    config = changed(**free)
    open_workdir(tmp_path, config)
    assert from_json((tmp_path / "config.json").read_text()) == flatten(config)


@pytest.mark.parametrize("content", [b'{"method": "util', b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_workdir(tmp_path, changed())
    assert str(tmp_path / "config.json") in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == content


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    open_workdir(tmp_path / "run", changed())
    assert not (tmp_path / "run").exists()


def test_the_summary_is_json(tmp_path):
    summary = {"dataset": "größer", "accuracy": {"final": 0.5}, "versions": versions()}
    write_summary(tmp_path, summary)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == summary and "größer" in text and text.endswith("}\n")
    assert summary["versions"]["utilgen_jax"] == utilgen_jax.__version__
    assert summary["versions"]["jax"] == metadata.version("jax") == jax.__version__
