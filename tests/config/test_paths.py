"""The home folder stands for `~` in every path of every command, and a path is the same however it is written."""

import importlib

import pytest

from tests.test_architecture import COMMANDS
from utilgen_jax import main
from utilgen_jax.bench.__main__ import BENCHMARKS
from utilgen_jax.bench.__main__ import define_flags as bench_flags
from utilgen_jax.config.command_line import PATH_FLAGS, parse_flags
from utilgen_jax.config.schema import FIELDS, default_config, diff_configs, flatten, set_field
from utilgen_jax.config.validation import checked, validate

# Flags whose text is no path; `config` finds its file itself.
WORDS = """ablate against architecture attention augment batch_sizes checks class_counts class_names classifier config
crop data dtype dtypes format gradient_checkpointing images_per_shot initial methods models name
negative_prompt noise normalization objective original_size passes pool programs prompt protocol regimes
revision scheduler scores shard shots steps target_size timestep_spacing token topology update vae_dtype
variant weightings weights_dtype without""".split()


def all_flags():
    """{command: its flags}."""
    found = {"main": main.define_flags()}
    for name in COMMANDS:
        if name != "bench":
            module = importlib.import_module(f"utilgen_jax.{name}")
            command = importlib.import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module
            found[name] = command.define_flags()
    for name, benchmark in BENCHMARKS.items():
        found[f"bench {name}"] = bench_flags()
        benchmark.define_flags(found[f"bench {name}"])
    return found


@pytest.mark.parametrize(
    "command", ["main", *(name for name in COMMANDS if name != "bench"), *map("bench {}".format, BENCHMARKS)]
)
def test_the_home_folder_stands_for_a_tilde_in_every_flag_that_is_a_path(command, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = all_flags()[command]
    texts = [name for name in values if type(values[name].parser).__name__ in ("ArgumentParser", "ListParser")]
    assert set(texts) <= {*PATH_FLAGS, *WORDS}, f"say of {command}'s flags whether they are paths"
    for name in texts:
        values = all_flags()[command]
        assert parse_flags(values, ["it", f"--{name}=~/a"])[1] == []
        expected = "/home/me/a" if name in PATH_FLAGS else "~/a"
        assert values[name].value in (expected, [expected])
        if name in PATH_FLAGS:
            problems = parse_flags(all_flags()[command], ["it", f"--{name}=~nonesuch/a"])[1]
            assert problems == [f"--{name}=~nonesuch/a: there is no such home folder"]


def test_several_paths_of_a_flag_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = all_flags()["compare"]
    parse_flags(values, ["compare", "--join=~/a,b,~/c"])
    assert values["join"].value == ["/home/me/a", "b", "/home/me/c"]


def test_the_home_folder_stands_for_a_tilde_in_every_field_that_is_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = {path for path, field in FIELDS.items() if field.is_path}
    told = {path for path, field in FIELDS.items() if any(word in field.help for word in ("folder", "file", ".npz"))}
    assert told <= paths
    config = default_config()
    for path in paths:
        set_field(config, path, "~/a")
    flat = flatten(checked(config))
    assert {flat[path] for path in paths} == {"/home/me/a"}
    set_field(config, "data.path", "~nonesuch/a")
    assert "config.data.path: there is no such home folder, '~nonesuch/a'" in validate(config)


def test_a_path_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    before = flatten(checked(default_config())) | {"data.path": "images"}
    for text in ("./images", "images/", f"{tmp_path}/images", "~/images", "x/../images", "link"):
        assert diff_configs(before, before | {"data.path": text}) == []
    (line,) = diff_configs(before, before | {"data.path": "images2"})
    assert line == "config.data.path: 'images' before, 'images2' now"
    assert len(diff_configs(before, before | {"data.path": ""})) == 1
