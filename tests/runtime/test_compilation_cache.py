"""A second start compiles nothing, whatever became of the folder in which programs are kept."""

import os
import subprocess
import sys

from utilgen_jax.runtime.compilation_cache import keep_programs

COMMAND = """
import sys
from utilgen_jax.config.command_line import exit_status

def command():
    import jax
    found = []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rsplit("/", 1)[-1]))
    jax.jit(lambda x: x + 1)(1.0)
    print("kept" if "cache_hits" in found else "compiled")

sys.exit(exit_status(command, ""))
"""


def start(home) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environ |= {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-c", COMMAND], env=environ, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def test_a_second_start_compiles_nothing_also_after_one_that_was_killed_as_it_wrote(tmp_path):
    assert [start(tmp_path), start(tmp_path)] == ["compiled", "kept"]
    for program in (tmp_path / "utilgen_jax" / "programs").rglob("jit_*-cache"):
        program.write_bytes(program.read_bytes()[:9])
        program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
    assert [start(tmp_path), start(tmp_path)] == ["compiled", "kept"]


def test_the_environment_and_a_folder_that_cannot_be_made_are_respected(tmp_path):
    environ = {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    keep_programs(environ)
    assert environ == {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    (tmp_path / "file").write_text("")
    environ = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    keep_programs(environ)
    assert "JAX_COMPILATION_CACHE_DIR" not in environ


def test_a_command_that_compiles_nothing_leaves_no_folder(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    keep_programs(environ)
    assert environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "cache"))
    assert list(tmp_path.iterdir()) == []
