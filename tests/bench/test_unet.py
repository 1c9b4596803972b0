"""The command as it is run, on tiny sizes: its figures against torch's own count and torch's own results."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
import torch

from utilgen_jax.bench import sides, unet
from utilgen_jax.bench.__main__ import main
from utilgen_jax.bench.jax_unet import JaxUNet, UNetSettings, drawn_noise, random_params
from utilgen_jax.bench.torch_unet import TorchUNet
from utilgen_jax.diffusion.schedules import add_noise, load_schedule
from utilgen_jax.errors import InputError

TINY, SCHEDULER = unet.CONFIGS["tiny"]


def bench(*words):
    """Returns the exit status, the lines on standard output, and the figures on the last one."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main(["bench", "unet", "--repeats=2", "--warmup=0", *words])
    lines = output.getvalue().splitlines()
    return status, lines, json.loads(lines[-1])


@pytest.fixture(scope="module")
def against_torch():
    return bench("--against=torch", "--architecture=tiny", "--rank=4")


@pytest.mark.slow
def test_both_sides_compute_the_same(against_torch):
    status, _, figures = against_torch
    errors = [result["relative_errors"] for result in figures["results"]]
    assert [set(error) for error in errors] == [{"prediction"}, {"loss", "grad_norm"}]
    assert all(value < 1e-4 for error in errors for value in error.values())
    assert status == 0 and figures["agree"]


@pytest.mark.slow
def test_compiled_operations_are_those_that_torch_counts(against_torch):
    for result in against_torch[2]["results"]:
        assert result["flops"] == pytest.approx(result["torch_flops"], rel=1e-3)
        assert result["compiled_flops"] == pytest.approx(result["torch_flops"], rel=0.05)


@pytest.mark.slow
def test_figures_fit_each_other(against_torch):
    _, lines, figures = against_torch
    assert [result["pass"] for result in figures["results"]] == ["forward", "lora_step"]
    assert figures["parameters"] == 803204 and figures["peak_source"] == "measured"
    for result in figures["results"]:
        for side in ("ours", "torch"):
            rate = result["flops"] / result[side]["median_seconds"]
            assert result[side]["flops_per_second"] == pytest.approx(rate)
            assert result[side]["share_of_peak"] == pytest.approx(rate / figures["peak_flops_per_second"])
            assert 0 < result[side]["min_seconds"] <= result[side]["median_seconds"]
            assert result[side]["first_seconds"] > 0
        assert result["ratio"] > 0
        assert any(line.split()[:1] == [result["pass"]] and f"{result['ratio']:.2f}" in line for line in lines)


@pytest.mark.slow
def test_half_precision_and_image_conditions():
    status, _, figures = bench(
        *("--against=torch", "--checkpoint=glyphs", "--passes=forward", "--batch_sizes=2", "--dtype=bfloat16"),
        *("--weights_dtype=float32", "--attention=chunked"),
    )
    (result,) = figures["results"]
    assert status == 0 and result["batch_size"] == 2
    assert 1e-4 < result["relative_errors"]["prediction"] < 5e-2  # both do compute in bfloat16
    assert result["flops"] == pytest.approx(result["torch_flops"], rel=1e-3)


@pytest.mark.slow
def test_both_sides_are_given_stable_diffusion_xls_pooled_states_and_sizes():
    small = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    small |= {"cross_attention_dim": 16, "norm_num_groups": 2, "attention_head_dim": 2, "use_linear_projection": True}
    added = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 60}
    config = small | {"addition_embed_type": "text_time", "transformer_layers_per_block": 2} | added
    ours = JaxUNet(config, SCHEDULER, UNetSettings("float32", "float32", rank=2))
    inputs = ours.inputs(2, 4)
    torchs = TorchUNet(config, ours, platform="cpu")
    for one, other in ((ours.forward, torchs.forward), (ours.lora_step, torchs.lora_step)):
        found, expected = one(inputs).outputs, other(inputs).outputs
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torchs_checkpointing_and_compilation_are_asked_for(monkeypatch):
    ours = JaxUNet(TINY, SCHEDULER, UNetSettings("float32", "float32", rank=2))
    inputs, asked, outputs = ours.inputs(1, 8), [], []

    def compile(model):
        # Transposed strides would make torch slow, and the comparison unfair.
        assert all(parameter.is_contiguous() for parameter in model.parameters())
        asked.append(model.is_gradient_checkpointing)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    for enabled in (False, True):
        side = TorchUNet(TINY, ours, platform="cpu", compile=enabled, gradient_checkpointing=enabled)
        outputs.append(side.lora_step(inputs).outputs)
    assert asked == [True]
    for name in outputs[0]:
        np.testing.assert_allclose(outputs[1][name], outputs[0][name], rtol=1e-5)


@pytest.mark.slow
def test_ours_alone():
    status, lines, figures = bench("--architecture=tiny", "--passes=forward", "--latent_size=8")
    (result,) = figures["results"]
    assert status == 0 and figures["agree"] and "torch" not in result and "ratio" not in result
    assert not any("torch" in line for line in lines[2:-1] if line.startswith("forward"))


def test_sides_that_differ_are_told(monkeypatch, capsys):
    monkeypatch.setattr(unet, "run", lambda settings: ("table", {"agree": False}))
    assert main(["bench", "unet", "--architecture=tiny"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1]) == {"agree": False}
    assert "do not compute the same" in output.err


def test_all_mistakes_are_told_at_once(capsys):
    words = (
        "--against=torhc --architecture=sd16 --checkpoint=glyphs --batch_sizes=1,zero --passes=foward --dtype=float64 "
        "--attention=flash --gradient_checkpointing=all --repeats=0 --rang=4"
    )
    assert main(["bench", "unet", *words.split()]) == 2
    errors = capsys.readouterr().err
    for told in (
        *("torhc", "sd16", "give one of them", "'zero'", "foward", "nearest is forward", "float64", "flash", "all:"),
        *("repeats", "--rang=4: no such flag; the nearest is --rank"),
    ):
        assert told in errors, told


def test_torch_computes_in_no_more_than_the_weights_hold(capsys):
    assert main(["bench", "unet", "--against=torch", "--weights_dtype=bfloat16", "--dtype=float32"]) == 2
    assert "--weights_dtype: torch computes" in capsys.readouterr().err


def test_results_that_are_not_finite_do_not_agree():
    results = [{"relative_errors": {"prediction": 1e-3}}, {"relative_errors": {"loss": None}}]
    assert sides.agree(results[:1], 1e-2) and not sides.agree(results[:1], 1e-4) and not sides.agree(results, 1e-2)


def test_torch_needs_a_device_of_the_same_kind(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(InputError, match="does not run on this tpu"):
        sides.torch_device()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="does not see the GPU"):
        sides.torch_device()


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sides, "TORCH_PACKAGES", ("torch", "no_such_package"))
    assert main(["bench", "unet", "--against=torch"]) == 2
    assert "pip install no_such_package" in capsys.readouterr().err


def test_help_and_unknown_benchmarks(capsys):
    assert main(["bench", "--help"]) == 0 and "Benchmarks: unet" in capsys.readouterr().out
    assert main(["bench", "unet", "--help"]) == 0 and "--latent_size" in capsys.readouterr().out
    assert main(["bench", "unett"]) == 2 and "the nearest is unet" in capsys.readouterr().err
    assert main(["bench"]) == 2 and "say which" in capsys.readouterr().err


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_drawn_noise_is_what_the_loss_compares_with(prediction_type):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedule = load_schedule({**config, "prediction_type": prediction_type})
    latents = np.asarray(jax.random.normal(jax.random.key(1), (3, 4, 4, 2)))
    noisy, timesteps, target = drawn_noise(schedule, latents, jax.random.key(2))
    signal = np.sqrt(np.asarray(schedule.alphas_cumprod)[timesteps])[:, None, None, None]
    sigma = np.sqrt(1 - signal**2)
    noise = target if prediction_type == "epsilon" else (target + sigma * latents) / signal
    np.testing.assert_allclose(add_noise(schedule, latents, noise, timesteps), noisy, rtol=1e-4, atol=1e-4)
    assert 0.7 < noise.std() < 1.3


def test_random_weights_keep_the_size_of_activations():
    shapes = {
        "layer": {
            "kernel": jax.ShapeDtypeStruct((3, 3, 64, 32), "float32"),
            "bias": jax.ShapeDtypeStruct((32,), "float32"),
        },
        "norm": {"scale": jax.ShapeDtypeStruct((64,), "float32")},
    }
    params = random_params(shapes, "bfloat16")
    assert params["layer"]["kernel"].dtype == "bfloat16"
    assert float(np.std(np.float32(params["layer"]["kernel"]))) == pytest.approx((9 * 64) ** -0.5, rel=0.05)
    assert abs(float(np.mean(np.float32(params["norm"]["scale"]))) - 1) < 0.05
