"""The checks for a GPU run at toy size on any machine, and one that fails takes no other with it."""

import json

import pytest

from utilgen_jax.bench import __main__ as bench
from utilgen_jax.bench import device


def run(*flags: str) -> int:
    return bench.main(["bench", "device", *flags])


@pytest.mark.slow
def test_checks_run_at_toy_size_and_are_rows(tmp_path, capsys, monkeypatch):
    def in_this_process(arguments, seconds):
        assert bench.main(["bench", *arguments]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(device, "_run", in_this_process)
    out = tmp_path / "check.json"
    names = ["precision", "classifier"]  # the others are those of tests beside this one
    assert run("--toy", "--torch", f"--checks={','.join(names)}", f"--out={out}") == 0
    table, found = capsys.readouterr().out, json.loads(out.read_text())["checks"]
    assert "error of float32, chunked attention" in table and "classifier, step, batch 2" in table
    assert found["classifier"]["results"][0]["ratio"] > 0
    classifier = found["classifier"]["results"][0]
    assert classifier["flops"] == pytest.approx(classifier["torch_flops"], rel=0.15)
    assert max(each["max_error"] for each in found["precision"]["results"]) < 1e-5


@pytest.mark.slow
def test_a_check_that_fails_is_told_and_the_others_run(tmp_path, capsys, monkeypatch):
    broken = device.Check(("unet", "--architecture=none"), (), device._timed)
    monkeypatch.setattr(device, "CHECKS", {"broken": broken} | {"precision": device.CHECKS["precision"]})
    out = tmp_path / "check.json"
    assert run("--toy", "--notorch", "--checks=broken,precision", f"--out={out}") == 1
    found = json.loads(out.read_text())["checks"]
    assert found["broken"] == {"failed": "status 2, see standard error"}
    assert found["precision"]["agree"] and "status 2" in capsys.readouterr().out
    assert run("--toy", "--notorch", "--checks=precision", f"--out={out}", "--minutes=0.01") == 1
    assert json.loads(out.read_text())["checks"]["precision"] == {"failed": "stopped after 1 s"}


@pytest.mark.parametrize("name", device.CHECKS)
@pytest.mark.parametrize("is_toy", [False, True])
def test_every_check_is_a_benchmark_with_flags_that_it_has(name, is_toy, monkeypatch, capsys):
    check = device.CHECKS[name]
    arguments = check.toy if is_toy else check.arguments
    seen = []
    monkeypatch.setattr(bench.BENCHMARKS[arguments[0]], "run", lambda settings: seen.append(settings) or ("", {}))
    against = ["--against=torch"] if check.against else []
    assert bench.main(["bench", *arguments, *against, "--repeats=3"]) == 0, capsys.readouterr().err
    assert seen[0]["repeats"] == 3
