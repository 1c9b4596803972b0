"""Samplers with a made-up denoiser, step by step, against torch's diffusers."""

import importlib
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.torch_parity import relative_error
from utilgen_jax.diffusion.samplers import invert, make_sampler, sampler_name
from utilgen_jax.diffusion.schedules import PREDICTION_TYPES, TIMESTEP_SPACINGS, diffuse, load_schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT = BETAS | {"clip_sample": False}
ZERO_SNR = {"rescale_betas_zero_snr": True}
SHAPE = (2, 4, 4, 3)
KARRAS = {"use_karras_sigmas": True}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
THIRD_ORDER = {"solver_order": 3, "lower_order_final": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}
# name -> scheduler, its config, and whether it can rescale to zero-terminal-SNR
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, LATENT, True),
    "ddpm": (diffusers.DDPMScheduler, LATENT, True),
    "pndm": (diffusers.PNDMScheduler, BETAS | {"skip_prk_steps": True}, False),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, BETAS, True),
    "dpmsolver++_karras": (diffusers.DPMSolverMultistepScheduler, BETAS | KARRAS, False),
    "dpmsolver++_sde": (diffusers.DPMSolverMultistepScheduler, BETAS | SDE, True),
    "dpmsolver++_sde_karras": (diffusers.DPMSolverMultistepScheduler, BETAS | SDE | KARRAS, False),
    "unipc": (diffusers.UniPCMultistepScheduler, BETAS, True),
    "euler": (diffusers.EulerDiscreteScheduler, BETAS, True),
    "euler_karras": (diffusers.EulerDiscreteScheduler, BETAS | KARRAS, True),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, BETAS, True),
    "heun": (diffusers.HeunDiscreteScheduler, BETAS, False),
    "lms": (diffusers.LMSDiscreteScheduler, BETAS, False),
    "lms_karras": (diffusers.LMSDiscreteScheduler, BETAS | KARRAS, False),
    "lcm": (diffusers.LCMScheduler, BETAS, True),
}
# diffusers' have none.
WITHOUT_SAMPLE_PREDICTION = ("pndm", "euler_ancestral")
SPACED = [(name, spacing) for name in SCHEDULERS for spacing in TIMESTEP_SPACINGS if name != "lcm"] + [("lcm", None)]
# sampler, prediction, spacing, rescaled, further settings, steps, strength of a start from an image (or None), eta
CASES = [
    (name, prediction, spacing, False, {}, 8, None, 0.0)
    for name, spacing in SPACED
    for prediction in PREDICTION_TYPES
    if prediction != "sample" or name not in WITHOUT_SAMPLE_PREDICTION  # see below
]
CASES += [
    (name, prediction, spacing, True, {}, 8, None, 0.0)
    for name, spacing in SPACED
    for prediction in ("v_prediction", "sample")
    if SCHEDULERS[name][2] and (prediction != "sample" or name not in WITHOUT_SAMPLE_PREDICTION)
]
CASES += [
    (name, "v_prediction", None if name == "lcm" else "leading", False, {"steps_offset": 1}, 10, strength, 0.0)
    for name in SCHEDULERS
    for strength in (0.25, 0.6, 0.9, 1.0)
]
CASES += [("ddim", prediction, "leading", False, {"steps_offset": 1}, 8, None, 0.7) for prediction in PREDICTION_TYPES]
CASES += [(name, "epsilon", None, False, {}, steps, None, 0.0) for name in SCHEDULERS for steps in (1, 2, 33)]
CASES += [
    (name, "epsilon", "leading", False, {"set_alpha_to_one": value, "steps_offset": 1}, 5, None, 0.0)
    for name in ("ddim", "pndm")
    for value in (False, True)
]
CASES += [
    ("dpmsolver++", "v_prediction", spacing, False, settings, steps, strength, 0.0)
    for settings in (
        {"solver_type": "heun"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True},
        {"final_sigmas_type": "sigma_min", "solver_type": "heun", "lower_order_final": False},
    )
    for spacing, steps, strength in (("trailing", 6, None), ("linspace", 16, 0.5))
]
CASES += [
    (name, "v_prediction", spacing, False, settings, steps, strength, 0.0)
    for name in ("dpmsolver++", "dpmsolver++_sde", "dpmsolver++_sde_karras", "unipc")
    for settings in (
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        *([{"solver_type": "bh1"}] if name != "unipc" else []),
        {"final_sigmas_type": "sigma_min", "solver_type": "bh2"},
    )
    for spacing, steps, strength in (("trailing", 6, None), ("linspace", 17, 0.5))
]
CASES += [
    ("unipc", "epsilon", "linspace", False, {"solver_type": "bh1", "solver_order": 3} | SIGMA_MIN, 7, None, 0.0),
    ("unipc", "epsilon", "linspace", False, {"solver_order": 3, "lower_order_final": False} | SIGMA_MIN, 7, None, 0.0),
    *[(name, "epsilon", "linspace", False, THIRD_ORDER, 7, None, 0.0) for name in SCHEDULERS if "solver++" in name],
]
CASES += [
    (name, "epsilon", spacing, False, {"use_karras_sigmas": False, f"use_{kind}_sigmas": True}, 9, strength, 0.0)
    for name in ("euler", "heun", "lms")
    for kind in ("exponential", "beta", "karras")
    for spacing, strength in (("linspace", None), ("leading", 0.6))
]
CASES += [
    (name, "epsilon", "leading", False, settings | {"clip_sample": True}, 7, None, 0.0)
    for name in ("ddim", "ddpm", "heun", "lcm")
    for settings in ({}, {"clip_sample_range": 0.4})
]
CASES += [
    ("unipc", "epsilon", "linspace", False, {"disable_corrector": [0, 3]}, 7, None, 0.0),
    ("unipc", "epsilon", "linspace", False, KARRAS | {"sigma_min": 0.1, "sigma_max": 9.0}, 7, None, 0.0),
    ("euler", "epsilon", "linspace", False, KARRAS | {"sigma_min": 0.1, "sigma_max": 9.0}, 7, None, 0.0),
    ("lcm", "epsilon", None, False, {"original_inference_steps": 20, "timestep_scaling": 0.01}, 4, None, 0.0),
    ("euler", "epsilon", "trailing", False, {"final_sigmas_type": "sigma_min"}, 4, None, 0.0),
    ("euler", "epsilon", "trailing", False, {}, 1, None, 0.0),  # SD-Turbo's
    ("ddim", "epsilon", "leading", False, {"beta_schedule": "linear"}, 8, None, 0.0),
    ("ddim", "epsilon", "leading", False, {"beta_schedule": "squaredcos_cap_v2"}, 8, None, 0.0),
]


def fake_model(latents, timestep, tanh):
    """Depends on latents and timestep; the same formula in both frameworks."""
    return tanh(0.7 * latents + 0.001 * timestep) - 0.1


def torch_steps(scheduler, num_steps, noise, clean, strength, step_noises, monkeypatch, **step_settings):
    """Returns the denoiser's inputs and the latents after each step of diffusers' scheduler."""
    scheduler.set_timesteps(num_steps)
    # As in StableDiffusionImg2ImgPipeline.get_timesteps.
    first = 0 if strength is None else max(num_steps - min(int(num_steps * strength), num_steps), 0)
    first *= scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if strength is None:
        latents = torch.tensor(noise) * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(torch.tensor(clean), torch.tensor(noise), timesteps[:1].repeat(len(noise)))
    module = importlib.import_module(type(scheduler).__module__)
    seen = []
    for index, timestep in enumerate(timesteps):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, i=index, **__: torch.tensor(step_noises[i]), False)
        model_input = scheduler.scale_model_input(latents, timestep)
        prediction = fake_model(model_input, timestep, torch.tanh)
        latents = scheduler.step(prediction, timestep, latents, **step_settings).prev_sample
        seen.append((float(timestep), model_input.numpy(), latents.numpy()))
    return seen


@pytest.mark.parametrize(("name", "prediction", "spacing", "rescale", "settings", "steps", "strength", "eta"), CASES)
def test_steps(name, prediction, spacing, rescale, settings, steps, strength, eta, monkeypatch):
    kind, config, _ = SCHEDULERS[name]
    config = config | {"prediction_type": prediction} | settings | (ZERO_SNR if rescale else {})
    if spacing is not None:
        config["timestep_spacing"] = spacing
    rng = np.random.default_rng(1)
    noise, clean = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    step_noises = rng.normal(size=(steps + 1, *SHAPE)).astype(np.float32)
    step_settings = {"eta": eta} if eta else {}
    expected = torch_steps(kind(**config), steps, noise, clean, strength, step_noises, monkeypatch, **step_settings)

    sampler = make_sampler(name, load_schedule(config), steps, strength=strength or 1.0, eta=eta)
    assert sampler.num_calls == len(expected)
    state = sampler.start(jnp.asarray(noise), None if strength is None else jnp.asarray(clean))
    for index, (timestep, model_input, latents) in enumerate(expected):
        assert float(sampler.timesteps[index]) == pytest.approx(timestep, rel=1e-6, abs=2e-3)
        ours = sampler.model_input(state, index)
        assert relative_error(ours, model_input) < 1e-4
        model_output = fake_model(ours, sampler.timesteps[index], jnp.tanh)
        state = sampler.step(state, index, model_output, step_noises[index] if sampler.is_stochastic else None)
        assert state.latents.dtype == jnp.float32
        assert relative_error(state.latents, latents) < 1e-4


def test_pndm_with_a_perfect_prediction_of_the_clean_latents_stays_on_the_straight_way():
    # Not supported by diffusers' PNDM.
    clean, noise = jnp.asarray(np.random.default_rng(2).normal(size=(2, *SHAPE)), jnp.float32)
    sampler = make_sampler("pndm", load_schedule(SCHEDULERS["pndm"][1] | {"prediction_type": "sample"}), 6)
    state = sampler.start(noise, clean)
    for index, alpha in enumerate(sampler.next_alphas_cumprod):
        state = sampler.step(state, index, clean)
        np.testing.assert_allclose(state.latents, diffuse(clean, noise, alpha), atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [1, 9])
def test_inversion(spacing, prediction, steps):
    config = LATENT | {"prediction_type": prediction, "timestep_spacing": spacing, "set_alpha_to_one": False}
    scheduler = diffusers.DDIMInverseScheduler(**config)
    scheduler.set_timesteps(steps)
    clean = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    expected = torch.tensor(clean)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(fake_model(expected, timestep, torch.tanh), timestep, expected).prev_sample
    noise = invert(lambda x, t: fake_model(x, t, jnp.tanh), load_schedule(config), jnp.asarray(clean), steps)
    assert relative_error(noise, expected.numpy()) < 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_file_that_diffusers_wrote_makes_its_own_sampler(name, tmp_path):
    kind, config, _ = SCHEDULERS[name]
    scheduler = kind(**config)
    scheduler.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert name.startswith(sampler_name(written))
    sampler = make_sampler("checkpoint", load_schedule(written), 7)
    scheduler.set_timesteps(7)
    np.testing.assert_allclose(sampler.timesteps, scheduler.timesteps.numpy(), rtol=1e-6, atol=2e-3)
    assert jax.tree.structure(sampler) == jax.tree.structure(make_sampler(name, load_schedule(config), 7))
