"""The noise schedule against torch's DDIMScheduler, and invalid settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from utilgen_jax.diffusion import schedules
from utilgen_jax.errors import InputError

# Shared by all configs below; diffusers clips by default, which is wrong for latents.
LATENT = {"clip_sample": False}
STABLE_DIFFUSION = LATENT | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BETAS = {
    "defaults": LATENT,
    "linear": LATENT | {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "linear"},
    "scaled_linear": STABLE_DIFFUSION,
    "cosine": LATENT | {"beta_schedule": "squaredcos_cap_v2"},
    "few": STABLE_DIFFUSION | {"num_train_timesteps": 50},
}


def latents_noise_timesteps():
    rng = np.random.default_rng(0)
    latents, noise = rng.normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
    return latents, noise, np.array([0, 1, 250, 500, 999], np.int32)


@pytest.mark.parametrize("name", BETAS)
def test_alphas_cumprod_are_those_of_diffusers(name):
    schedule, expected = schedules.load_schedule(BETAS[name]), DDIMScheduler(**BETAS[name])
    assert schedule.alphas_cumprod.dtype == jnp.float32
    assert schedule.num_train_timesteps == expected.config.num_train_timesteps
    # diffusers multiplies a thousand float32 numbers, this code float64 numbers.
    np.testing.assert_allclose(schedule.alphas_cumprod, expected.alphas_cumprod.numpy(), rtol=1e-4)


@pytest.mark.parametrize(("setting", "final"), [({"set_alpha_to_one": True}, 1.0), ({"set_alpha_to_one": False}, None)])
def test_alphas_at_timesteps_and_before_the_first(setting, final):
    schedule, expected = (
        ddim_schedule(STABLE_DIFFUSION | setting),
        DDIMScheduler(**STABLE_DIFFUSION, **setting),
    )
    alphas = schedules.alphas_at(schedule, np.array([700, 0, -1, -300]))
    before = expected.final_alpha_cumprod.item()
    np.testing.assert_allclose(alphas, [*expected.alphas_cumprod[[700, 0]].tolist(), before, before], rtol=1e-5)
    assert final is None or alphas[-1] == final


def ddim_schedule(config):
    return schedules.read_by(schedules.load_schedule(config), "DDIMScheduler")


def test_classes_have_different_defaults():
    schedule = schedules.load_schedule(STABLE_DIFFUSION)
    ddim, pndm, euler = (
        schedules.read_by(schedule, f"{name}Scheduler", **overrides)
        for name, overrides in (("DDIM", {}), ("PNDM", {"skip_prk_steps": True}), ("EulerDiscrete", {}))
    )
    before = np.array([-1])
    assert schedules.alphas_at(ddim, before) == 1.0
    assert schedules.alphas_at(pndm, before) == schedule.alphas_cumprod[0]
    assert schedules.inference_timesteps(ddim, 5)[0] == 800
    assert schedules.inference_timesteps(euler, 5)[0] == 999


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_zero_terminal_snr(name):
    config = BETAS[name] | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule = schedules.load_schedule(config)
    assert schedule.alphas_cumprod[-1] == 0.0
    np.testing.assert_allclose(schedule.alphas_cumprod, DDIMScheduler(**config).alphas_cumprod.numpy(), atol=1e-6)


def test_zero_terminal_snr_cannot_start_from_a_prediction_of_noise():
    with pytest.raises(InputError, match="rescale_betas_zero_snr=True .* 'v_prediction' or 'sample'"):
        schedules.load_schedule(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})


@pytest.mark.parametrize("spacing", schedules.TIMESTEP_SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("num_steps", [1, 7, 20, 50, 333, 999])
def test_inference_timesteps_are_those_of_diffusers(spacing, offset, num_steps):
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing, "steps_offset": offset}
    expected = DDIMScheduler(**config)
    expected.set_timesteps(num_steps)
    timesteps = schedules.inference_timesteps(ddim_schedule(config), num_steps)
    assert timesteps.dtype == np.int32
    np.testing.assert_array_equal(timesteps, expected.timesteps.numpy())


@pytest.mark.parametrize("spacing", schedules.TIMESTEP_SPACINGS)
def test_every_number_of_steps_has_as_many_falling_timesteps_of_the_schedule(spacing):
    # diffusers has a 62nd of 61 "trailing" timesteps, -1.
    schedule = ddim_schedule(STABLE_DIFFUSION | {"timestep_spacing": spacing})
    for num_steps in range(1, 1001):
        timesteps = schedules.inference_timesteps(schedule, num_steps)
        assert timesteps.shape == (num_steps,)
        assert timesteps[0] <= 999 and timesteps[-1] >= 0 and (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize(
    ("config", "num_steps", "largest"), [({}, 0, 1000), ({}, 1001, 1000), ({"steps_offset": 1}, 1000, 999)]
)
def test_impossible_numbers_of_steps_are_refused(config, num_steps, largest):
    schedule = ddim_schedule(STABLE_DIFFUSION | config)
    with pytest.raises(InputError, match=f"between 1 and {largest}, not {num_steps}"):
        schedules.inference_timesteps(schedule, num_steps)


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_add_noise_is_that_of_diffusers(name):
    latents, noise, timesteps = latents_noise_timesteps()
    noisy = schedules.add_noise(schedules.load_schedule(BETAS[name]), latents, noise, timesteps)
    expected = DDIMScheduler(**BETAS[name]).add_noise(*map(torch.tensor, (latents, noise, timesteps)))
    assert noisy.dtype == jnp.float32
    np.testing.assert_allclose(noisy, expected.numpy(), atol=2e-5)


def test_training_targets():
    latents, noise, timesteps = latents_noise_timesteps()
    target = {
        kind: schedules.training_target(
            schedules.load_schedule(STABLE_DIFFUSION | {"prediction_type": kind}), latents, noise, timesteps
        )
        for kind in schedules.PREDICTION_TYPES
    }
    velocity = DDPMScheduler(**STABLE_DIFFUSION).get_velocity(*map(torch.tensor, (latents, noise, timesteps)))
    np.testing.assert_array_equal(target["epsilon"], noise)
    np.testing.assert_array_equal(target["sample"], latents)
    np.testing.assert_allclose(target["v_prediction"], velocity.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
def test_a_perfect_prediction_gives_back_latents_and_noise(kind):
    latents, noise, timesteps = latents_noise_timesteps()
    schedule = schedules.load_schedule(STABLE_DIFFUSION | {"prediction_type": kind})
    noisy = schedules.add_noise(schedule, latents, noise, timesteps)
    prediction = schedules.training_target(schedule, latents, noise, timesteps)
    clean, found_noise = schedules.clean_and_noise(kind, prediction, noisy, schedule.alphas_cumprod[timesteps])
    np.testing.assert_allclose(clean, latents, atol=2e-5)
    np.testing.assert_allclose(found_noise, noise, atol=2e-5)
    again = schedules.prediction_of(kind, clean, noisy, schedule.alphas_cumprod[timesteps])
    np.testing.assert_allclose(again, prediction, atol=1e-3)


@pytest.mark.parametrize(
    "setting",
    [{"beta_schedule": "sigmoid"}, {"prediction_type": "flow_prediction"}, {"beta_start": "0.1"}, {"trained_beta": 3}],
)
def test_unsupported_settings_are_refused_by_name(setting):
    [(name, value)] = setting.items()
    with pytest.raises(InputError, match=f"scheduler_config.json: {name} = ") as refusal:
        schedules.load_schedule(STABLE_DIFFUSION | setting)
    assert repr(value) in str(refusal.value)


def test_trained_betas_are_refused():
    with pytest.raises(InputError, match="trained_betas"):
        schedules.load_schedule({"trained_betas": [0.1]})


def test_settings_of_any_kind_leave_the_schedule_a_pytree_that_jit_takes():
    schedule = schedules.load_schedule(
        STABLE_DIFFUSION | {"_use_default_values": ["solver_order"], "clip_sample": True, "disable_corrector": [1]}
    )
    assert schedule.settings["clip_sample"] is True and "_use_default_values" not in schedule.settings
    noisy = jax.jit(schedules.add_noise)(schedule, *latents_noise_timesteps()[:2], jnp.zeros(5, jnp.int32))
    assert noisy.shape == (5, 4, 4, 3)
