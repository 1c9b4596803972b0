"""The command line: every mistake at once, exit status 2, no traceback, no device, nothing written."""

import errno
import os
import shlex
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import utilgen_jax
from utilgen_jax import main as main_lib
from utilgen_jax.config.schema import FIELDS
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.termination import Terminated

ROOT = Path(__file__).resolve().parent.parent
DIGITS = f"--config={ROOT / 'configs/digits.py'}"


@pytest.fixture
def pipeline(monkeypatch):
    """Replaces what main hands over to; `calls` are the (config, workdir) it was run with."""
    fake = types.SimpleNamespace(calls=[], error=None)

    def run(config, workdir):
        fake.calls.append((config, workdir))
        if fake.error:
            raise fake.error

    module = types.SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "utilgen_jax.pipeline", module)
    monkeypatch.setattr(utilgen_jax, "pipeline", module, raising=False)
    return fake


def errors_of(capsys, *arguments: str) -> list[str]:
    """Runs main on wrong arguments; returns its messages."""
    assert main_lib.main(["main", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_a_good_command_line_reaches_the_pipeline(pipeline, tmp_path):
    overrides = ["--config.seed", "7", "--config.generator.guidance_scale=3", "--config.parallel.data", "-1"]
    assert main_lib.main(["main", f"{DIGITS}:method=vanilla,shots=5", *overrides, f"--workdir={tmp_path}"]) == 0
    ((config, workdir),) = pipeline.calls
    assert (config.method, config.data.shots, config.seed) == ("vanilla", 5, 7)
    assert type(config.generator.guidance_scale) is float
    assert workdir == str(tmp_path)


def test_a_protocol_is_a_variant_and_a_flag_and_fields_have_the_last_word(pipeline, tmp_path):
    for arguments, expected in (
        ([f"{DIGITS}:5x,synthetic_only"], (5, 1.0)),
        ([DIGITS, "--protocol=5x,synthetic_only"], (5, 1.0)),
        ([f"{DIGITS}:50x", "--protocol=5x"], (5, 0.0)),
        ([DIGITS, "--config.pool.images_per_shot=7", "--protocol=50x,real+synthetic"], (7, 0.0)),
    ):
        assert main_lib.main(["main", *arguments, f"--workdir={tmp_path}"]) == 0
        config = pipeline.calls.pop()[0]
        assert (config.pool.images_per_shot, config.classifier.synthetic_fraction) == expected


def test_a_run_without_a_workdir_is_given_one_and_says_so(pipeline, capsys):
    assert main_lib.main(["main", f"{DIGITS}:method=vanilla,shots=5,seed=3"]) == 0
    assert pipeline.calls[0][1] == "runs/digits-vanilla-5shots-seed3"
    assert capsys.readouterr().out == "workdir: runs/digits-vanilla-5shots-seed3\n"


def test_all_mistakes_are_told_at_once(pipeline, capsys, tmp_path):
    errors = errors_of(
        capsys,
        f"{DIGITS}:shots=many,metod=real",
        "--config.data.shotz=3",
        "--config.seed=x",
        "--config.pool.images_per_class=-4",
        "--config.data.source=folder",
        "--config.classifier.steps",
        f"--wrkdir={tmp_path}",
        "stray",
    )
    assert errors == [
        "--config.classifier.steps: a value is missing; write --config.classifier.steps=VALUE",
        f"--wrkdir={tmp_path}: no such flag; the nearest is --workdir (a config field is --config.FIELD=VALUE)",
        "stray: an argument that belongs to no flag",
        "variant 'shots=many': config.data.shots: expected a whole number, got 'many'",
        "variant 'metod=real' is unknown: the nearest is 'method=', all are method=, seed=, shots=, path=, "
        "checkpoint=, images=, steps=, folds=, runlocal, polysemy, long_tail, label_noise, "
        "5x, 50x, real+synthetic, synthetic_only",
        "--config.data.shotz: there is no such field; the nearest valid name is config.data.shots",
        "--config.seed: expected a whole number, got 'x'",
        "config.data.source: must be one of 'digits', 'tfds', 'hf', 'imagefolder', 'npz', got 'folder'; "
        "the nearest is 'imagefolder'",
        "config.pool.images_per_class: must be at least 1, got -4",
    ]
    assert pipeline.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "--config: say which config, such as --config=digits"),
        (["--workdir=x", "--config=nonesuch.py"], "--config: there is no file 'nonesuch.py'; the nearest config"),
        (
            ["--workdir=x", "--config=cifra:runlocal"],
            "there is no file 'cifra'; the nearest config of the package is 'cifar'",
        ),
        (["--workdir=x", f"--config={ROOT}/LICENSE"], "is not a Python file"),
        (["--workdir=x", f"--config={ROOT}"], "--config: there is no file"),
        (
            [DIGITS, "--workdir=x", "--protocol=5y,synthetic"],
            "--protocol=5y: is not one of 5x, 50x, real+synthetic, synthetic_only; the nearest is 5x",
        ),
        ([DIGITS, "--workdir=x", "--protocol=synthetic"], "the nearest is synthetic_only"),
        ([DIGITS, "--protocol=5x,50x"], "--protocol: 5x and 50x: these protocols exclude each other; name one"),
        (["--protocol=6x"], "--protocol=6x: is not one of 5x"),
        ([DIGITS, "--protocol=5x", "--config.pool.fill_to=9"], "set one of them to 0"),
        ([DIGITS, "--workdir=x", "--config.data=3"], "--config.data: there is no such field"),
        ([DIGITS, f"--workdir={__file__}/x"], "lies under, a file; give a folder"),
        ([DIGITS, "--workdir"], "--workdir: a value is missing; write --workdir=VALUE"),
    ],
)
def test_what_is_missing_is_named(pipeline, capsys, arguments, message):
    assert any(message in error for error in errors_of(capsys, *arguments))
    assert pipeline.calls == []
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return undefined_name", "line 5: NameError: name 'undefined_name' is not defined"),
        ("c = default_config(); c.data.shots = 1 / 0", "line 5: ZeroDivisionError"),
        ("c = default_config(); c.data.shotz = 3; return c", "config.data.shotz: there is no such field"),
        ("c = default_config(); c.data.shots = 'a'; return c", "config.data.shots: expected a whole number"),
        ("pass", "must return the config that default_config() made"),
        ("return (", "SyntaxError"),
    ],
)
def test_a_mistake_in_the_config_file_is_placed(pipeline, capsys, tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(f"from utilgen_jax.config.schema import default_config\n\n\ndef get_config(arg=''):\n    {body}\n")
    (error,) = errors_of(capsys, f"--config={file}", "--workdir=x")
    assert message in error


def test_a_config_file_without_get_config_is_refused(pipeline, capsys, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    (error,) = errors_of(capsys, f"--config={tmp_path / 'mine.py'}", "--workdir=x")
    assert "get_config" in error


def test_bad_input_found_later_is_a_message_too(pipeline, capsys):
    pipeline.error = InputError("checkpoint folder nowhere: does not exist")
    assert errors_of(capsys, DIGITS, "--workdir=x") == ["checkpoint folder nowhere: does not exist"]


def test_an_interrupt_says_how_to_go_on(pipeline, capsys):
    pipeline.error = KeyboardInterrupt()
    assert main_lib.main(["main", DIGITS, "--workdir=x"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_sigterm_says_what_continues(pipeline, capsys):
    pipeline.error = Terminated()
    assert main_lib.main(["main", DIGITS, "--workdir=x"]) == 143
    expected = f"terminated: all is saved; this continues: {shlex.join(sys.orig_argv)}"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system", "Permission denied"])
def test_a_disk_that_cannot_be_written_is_a_message_with_the_file(pipeline, capsys, reason):
    number = next(number for number in errno.errorcode if os.strerror(number) == reason)
    pipeline.error = OSError(number, reason, "x/metrics.jsonl")
    (error,) = errors_of(capsys, DIGITS, "--workdir=x")
    advice = "; make room, and the same command continues" if number == errno.ENOSPC else ""
    assert error == f"x/metrics.jsonl: {reason}{advice}"


def test_a_bug_keeps_its_traceback(pipeline):
    pipeline.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main_lib.main(["main", DIGITS, "--workdir=x"])


def test_the_full_help_shows_every_field_with_its_default(pipeline, capsys):
    assert main_lib.main(["main", "--helpfull"]) == 0
    out = capsys.readouterr().out
    assert "--config=configs/digits.py --workdir=runs/digits" in out
    for field in FIELDS.values():
        assert f"{field.path}=" in out
        assert field.help in out
    assert pipeline.calls == []


def test_mistakes_come_before_jax_and_before_anything_is_written(tmp_path):
    code = f"""
        import sys
        from utilgen_jax.main import main
        status = main(["main", "{DIGITS}", "--workdir={tmp_path}/run", "--config.data.shots=-1"])
        assert not {{"jax", "numpy", "flax", "transformers"}} & set(sys.modules), "imported too early"
        sys.exit(status)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: config.data.shots: must be at least 0, got -1\n"
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_a_command():
    command = [sys.executable, "-m", "utilgen_jax.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(main_lib.__doc__.strip()[:40])


def test_a_variant_with_two_mistakes_tells_both(pipeline, capsys):
    errors = errors_of(capsys, f"{DIGITS}:method=vanila,shot=3", "--config.pol.images=3", "--workdir=x")
    assert len(errors) == 3
    assert "'shot=3' is unknown: the nearest is 'shots='" in errors[0]
    assert "the nearest valid name is config.prompts.images_per_word" in errors[1]
    assert "'vanila'" in errors[2] and "'vanilla'" in errors[2]


def test_where_nobody_reads_on_there_is_no_traceback():
    command = f"set -o pipefail; {sys.executable} -m utilgen_jax.main --help | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
