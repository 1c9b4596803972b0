"""--help of every command is one screen that begins with examples; --helpfull leaves nothing out."""

import importlib

import pytest

from tests.test_architecture import COMMANDS, PACKAGE
from utilgen_jax.config.help import SCREEN, WIDTH

FILES = {name: PACKAGE / name / "__main__.py" for name in (*COMMANDS, "report")} | {"main": PACKAGE / "main.py"}
MODULES = [
    f"utilgen_jax.{name}" + (".__main__" if file.is_file() and name != "main" else "") for name, file in FILES.items()
]


@pytest.mark.parametrize("module", MODULES)
def test_help_is_one_screen_with_the_examples_first(module, capsys):
    command = importlib.import_module(module)
    assert command.main(["command", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN and max(map(len, lines)) <= WIDTH
    assert any(line.startswith(f"  python -m {module.removesuffix('.__main__')}") for line in lines[2:4])


@pytest.mark.parametrize("module", MODULES)
def test_each_flag_is_named_in_help_and_told_in_the_full_help(module, capsys):
    command = importlib.import_module(module)
    texts = []
    for word in ("--help", "--helpfull"):
        assert command.main(["command", word]) == 0
        texts.append(capsys.readouterr().out)
    values = command.define_flags()
    for name in values:
        if len(name) > 1:
            assert f"--{name}" in texts[0] and f"  --{name}: {' '.join(values[name].help.split())}" in texts[1]
