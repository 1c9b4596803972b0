import json

import pytest

from tests.tiny import DIGITS, TINY
from utilgen_jax.bench.__main__ import main
from utilgen_jax.bench.bilevel import MODELS, add_multiples, format_costs
from utilgen_jax.bench.jax_bilevel import STEPS


def bench(capsys, *flags):
    status = main(["bench", "bilevel", *flags])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_torch_computes_the_same_and_the_outer_level_costs_what_it_may(capsys, model):
    flags = (f"--models={model}", "--against=torch", "--batch_size=4", "--repeats=1", "--warmup=0")
    status, lines, _ = bench(capsys, *flags)
    figures = json.loads(lines[-1])
    assert status == 0 and figures["agree"]
    results = {result["step"]: result for result in figures["results"]}
    assert set(results) == set(STEPS)
    assert set(results["plain"]["relative_errors"]) == {"train_loss", "params"}
    assert set(results["weight_network"]["relative_errors"]) == {
        *("train_loss", "params", "validation_loss", "weighting_change")
    }
    assert "torch" not in results["saflex"]
    # Norms and activations count here and not there, and at four images the optimiser's additions weigh much.
    assert 0.9 < results["plain"]["compiled_flops"] / results["plain"]["torch_flops"] < 1.5
    assert results["weight_network"]["flops_multiple"] < 4.2
    assert results["saflex"]["flops_multiple"] < 3.7
    assert max(results[step]["amortised_multiple"] for step in ("weight_network", "saflex")) < 1.4
    assert all(result["peak_bytes"] > 0 for result in results.values())
    shown = f"{results['saflex']['flops_multiple']:.2f}"
    assert any(line.startswith(f"{model}, saflex") and shown in line.split() for line in lines)


def test_multiples_are_of_the_same_models_plain_step():
    def result(model, step, flops, ours, **sides):
        measured = {"ours": {"median_seconds": ours}, **sides}
        return {"pass": f"{model}, {step}", "model": model, "step": step, "compiled_flops": flops, **measured}

    results = [
        result("mlp", "plain", 10.0, 2.0, torch={"median_seconds": 1.0}) | {"peak_bytes": 2**20},
        result("mlp", "weight_network", 30.0, 5.0, torch={"median_seconds": 4.0}) | {"peak_bytes": 2**21},
        result("resnet20", "saflex", 7.0, 1.0) | {"peak_bytes": None},
    ]
    add_multiples(results, outer_every=5)
    assert results[1]["flops_multiple"] == 3.0 and results[1]["amortised_multiple"] == pytest.approx(7 / 5)
    assert results[1]["seconds_multiple"] == {"ours": 2.5, "torch": 4.0}
    assert "flops_multiple" not in results[0] and "flops_multiple" not in results[2]
    rows = format_costs(results, 5).splitlines()
    assert "every 5" in rows[0]
    assert rows[3].split() == ["mlp,", "weight_network", "0.00", "3.00", "1.40", "2.0", "2.50", "4.00"]


def test_mistakes_are_told_together(capsys):
    status, _, err = bench(capsys, "--models=resnet2", "--steps=plane,saflex", "--batch_size=0", "--against=tensor")
    assert status == 2
    for text in ("resnet20", "plain", "batch_size", "--against=tensor"):
        assert text in err


def test_help_says_what_is_timed(capsys):
    status, lines, _ = bench(capsys, "--help")
    assert (
        status == 0
        and any("functional_call" in line for line in lines)
        and any("--outer_every" in line for line in lines)
    )


@pytest.mark.slow
def test_the_whole_update_costs_less_without_a_part(capsys, tmp_path):
    from tests.diffusers_checkpoint import write_quick_stable_diffusion  # torch is slow to import

    settings = dict(TINY) | {"generator.checkpoint": write_quick_stable_diffusion(tmp_path)}
    changes = (f"--config.{name}={value}" for name, value in settings.items())
    flags = ("--update=whole", f"--config={DIGITS}", "--without=anchor,lora", "--repeats=1", "--warmup=0")
    status, lines, _ = bench(capsys, *flags, *changes)
    figures = json.loads(lines[-1])
    assert status == 0 and figures["num_generated"] == 2 and figures["classifier"] == "mlp"
    flops = {result["step"]: result["compiled_flops"] for result in figures["results"]}
    assert list(flops) == ["plain", "all levels", "without anchor", "without lora"]
    # Nobody wants the LoRA's gradient where it is not trained; XLA leaves it out.
    assert flops["plain"] < flops["without anchor"] < flops["all levels"] > flops["without lora"]
    assert figures["results"][1]["flops_multiple"] > 1 and any(line.startswith("all levels") for line in lines)


def test_the_whole_update_has_no_torch_side(capsys):
    status, _, err = bench(capsys, "--update=whole", "--against=torch", "--without=loras", "--architecture=sd155")
    assert status == 2 and "the whole update has no torch side" in err
    assert "the nearest is lora" in err and "the nearest is sd15" in err
