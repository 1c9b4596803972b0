"""The sampling loop: denoiser calls, noise, gradients, and invalid arguments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from utilgen_jax.config.schema import FIELDS
from utilgen_jax.diffusion.samplers import SAMPLERS, invert, make_sampler, run_sampler, run_sampler_beside
from utilgen_jax.diffusion.schedules import load_schedule
from utilgen_jax.errors import InputError
from utilgen_jax.generator.config import SamplingConfig

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
NOISE = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
KEYS = jax.random.split(jax.random.key(1), 3)


def fake_model(latents, timestep):
    return jnp.tanh(0.7 * latents + 0.001 * timestep) - 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_makes_the_samplers_steps_under_jit(name):
    sampler = make_sampler(name, load_schedule(CONFIG), 6)
    state = sampler.start(NOISE)
    for index in range(sampler.num_calls):
        prediction = fake_model(sampler.model_input(state, index), sampler.timesteps[index])
        keys = [jax.random.fold_in(key, index) for key in KEYS]
        noise = jnp.stack([jax.random.normal(key, NOISE.shape[1:]) for key in keys])
        state = sampler.step(state, index, prediction, noise if sampler.is_stochastic else None)
    latents = jax.jit(lambda sampler, noise: run_sampler(fake_model, sampler, noise, keys=KEYS))(sampler, NOISE)
    np.testing.assert_allclose(latents, state.latents, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch():
    sampler = make_sampler("ddpm", load_schedule(CONFIG), 4)
    run = jax.jit(lambda noise, keys: run_sampler(fake_model, sampler, noise, keys=keys))
    together = run(NOISE, KEYS)
    np.testing.assert_allclose(together[1:2], run(NOISE[1:2], KEYS[1:2]), atol=1e-6)
    assert np.abs(run(NOISE, KEYS[::-1]) - together).max() > 0.1
    with pytest.raises(InputError, match="is stochastic: it needs keys"):
        run_sampler(fake_model, sampler, NOISE)


def test_noise_of_the_steps_has_the_samplers_standard_deviation():
    sampler = make_sampler("ddim", load_schedule(CONFIG), 5, eta=1.0)
    noise = jax.random.normal(jax.random.key(2), (4000, 2, 2, 1))
    state = sampler.start(noise)
    mean, std = sampler.transition(state, 1, fake_model(state.latents, 0))
    drawn = sampler.step(state, 1, fake_model(state.latents, 0), noise).latents
    assert std > 0.1
    np.testing.assert_allclose(drawn, mean + std * noise, atol=1e-6)
    # η = 1 is DDPM (Song et al. 2021, section 4.1), where both take the same steps.
    ddpm = make_sampler("ddpm", load_schedule(CONFIG), 5)
    np.testing.assert_allclose(sampler.stds[:-1], ddpm.stds[:-1], rtol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_that_knows_the_clean_latents_ends_there(name):
    schedule = load_schedule(CONFIG | {"prediction_type": "v_prediction", "set_alpha_to_one": True})
    sampler = make_sampler(name, schedule, 10)
    clean = jnp.full(NOISE.shape, 0.3)
    state = sampler.start(NOISE, clean)
    for index, alpha in enumerate(sampler.alphas_cumprod):
        noise = (sampler.model_input(state, index) - jnp.sqrt(alpha) * clean) / jnp.sqrt(1 - alpha)
        state = sampler.step(state, index, jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * clean)
    np.testing.assert_allclose(state.latents, clean, atol=0.02)


def test_the_noise_that_inversion_finds_leads_back():
    schedule = load_schedule(CONFIG | {"set_alpha_to_one": False})
    noise = invert(fake_model, schedule, 0.5 * NOISE, 200)
    back = run_sampler(fake_model, make_sampler("ddim", schedule, 200), noise)
    np.testing.assert_allclose(back, 0.5 * NOISE, atol=0.05)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler"])
def test_some_calls_and_then_the_others_are_all(name):
    sampler = make_sampler(name, load_schedule(CONFIG), 6)
    halfway = run_sampler(fake_model, sampler, NOISE, keys=KEYS, calls=slice(2))
    rest = run_sampler(fake_model, sampler, halfway / sampler.init_noise_sigma, keys=KEYS, calls=slice(2, None))
    np.testing.assert_allclose(rest, run_sampler(fake_model, sampler, NOISE, keys=KEYS), atol=1e-5)


def test_inversion_of_the_first_steps_is_one_step_of_diffusers_there_and_back():
    """As in Golden Noise's public code: a step of DDIM, and one of its inversion."""
    there, back = DDIMScheduler(**CONFIG), DDIMInverseScheduler(**CONFIG)
    for scheduler in (there, back):
        scheduler.set_timesteps(10)
    timestep = there.timesteps[0]

    def model(latents, scale):
        return torch.from_numpy(np.array(scale * fake_model(jnp.asarray(latents.numpy()), int(timestep))))

    noise = torch.from_numpy(np.array(NOISE))
    latents = there.step(model(noise, 2.0), timestep, noise).prev_sample
    expected = back.step(model(latents, 1.0), timestep, latents).prev_sample  # named by its noisier end

    schedule = load_schedule(CONFIG)
    sampler = make_sampler("ddim", schedule, 10)
    ours = run_sampler(lambda *inputs: 2.0 * fake_model(*inputs), sampler, NOISE, calls=slice(1))
    np.testing.assert_allclose(ours, latents.numpy(), rtol=1e-4, atol=1e-5)
    ours = invert(fake_model, schedule, ours, 10, num_calls=1)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_latents_stay_float32_whatever_the_denoiser_computes_in():
    for name in SAMPLERS:
        sampler = make_sampler(name, load_schedule(CONFIG), 3)
        run = partial(run_sampler, lambda latents, _: latents.astype(jnp.bfloat16), sampler, keys=KEYS)
        latents = jax.eval_shape(run, NOISE)
        assert latents.dtype == jnp.float32


def losses(name):
    """(loss of one weight of all steps with gradients through the last n, loss of a weight of each step, with all)."""
    sampler = make_sampler(name, load_schedule(CONFIG), 7)

    def loss_of(weight_at, num_differentiable_steps):
        denoise = lambda latents, timestep: jnp.tanh(latents * weight_at(timestep) + 0.001 * timestep)
        settings = {"keys": KEYS, "num_differentiable_steps": num_differentiable_steps}
        return jnp.sum(run_sampler(denoise, sampler, NOISE, **settings) ** 2)

    def of_one(weight, num_differentiable_steps):
        return loss_of(lambda _: weight, num_differentiable_steps)

    def of_each(weights):
        return loss_of(lambda timestep: jnp.sum(jnp.where(sampler.timesteps == timestep, weights, 0.0)), None)

    return of_one, of_each


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_gradients_flow_through_the_last_steps_alone(name):
    of_one, of_each = losses(name)
    step_gradients = jax.grad(of_each)(jnp.full(7, 0.7))
    assert (np.abs(step_gradients) > 1e-4).all()
    for number in (0, 2, 6):
        gradient = jax.grad(of_one)(0.7, number)
        expected = step_gradients[7 - min(number, 7) :].sum()
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, err_msg=f"{number} steps")
    np.testing.assert_allclose(jax.grad(of_one)(0.7, None), step_gradients.sum(), rtol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_last_call_tells_beside_changes_no_latents_and_no_gradient(name):
    sampler = make_sampler(name, load_schedule(CONFIG), 5)
    settings = {"keys": KEYS, "num_differentiable_steps": 1}

    def denoise(weight, latents, timestep):
        return fake_model(weight * latents, timestep)

    def alone(weight):
        return jnp.sum(run_sampler(partial(denoise, weight), sampler, NOISE, **settings) ** 2)

    def beside(weight):
        last = lambda latents, timestep: (denoise(weight, latents, timestep), (timestep, weight))
        frozen = partial(denoise, jax.lax.stop_gradient(weight))
        latents, told = run_sampler_beside(partial(denoise, weight), last, sampler, NOISE, frozen=frozen, **settings)
        return jnp.sum(latents**2), told

    (value, (timestep, weight)), gradient = jax.value_and_grad(beside, has_aux=True)(0.9)
    assert timestep == sampler.timesteps[-1]
    np.testing.assert_allclose(weight, 0.9, rtol=1e-6)
    expected = jax.value_and_grad(alone)(0.9)
    np.testing.assert_allclose([value, gradient], expected, rtol=1e-5, atol=1e-8)


def test_steps_without_gradients_store_nothing_and_few_with_gradients_are_unrolled():
    of_one, _ = losses("ddim")
    for number, loops in ((0, 0), (1, 1), (2, 1), (6, 3)):  # the steps without; those with, forwards, backwards
        gradient = jax.jit(jax.grad(of_one), static_argnums=1)
        assert gradient.lower(0.7, number).as_text().count("stablehlo.while") == loops
    [scan, *_] = [
        eqn for eqn in jax.make_jaxpr(jax.grad(of_one), static_argnums=1)(0.7, 2).eqns if "jaxpr" in eqn.params
    ]
    assert scan.params["length"] == 5 and scan.params["num_carry"] == len(scan.outvars)


def test_the_config_offers_every_sampler_and_knows_its_calls():
    assert FIELDS["generator.scheduler"].choices == (*SAMPLERS, "checkpoint")
    for name in SAMPLERS:
        for steps in (1, 2, 7):
            config = SamplingConfig(scheduler=name, steps=steps)
            assert make_sampler(name, load_schedule(CONFIG), steps).num_calls == config.num_calls


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *[(name, {"thresholding": True}) for name in ("ddim", "ddpm", "lcm", "dpmsolver++")],
        *[(name, {"use_exponential_sigmas": True}) for name in ("unipc", "dpmsolver++")],
        *[(name, {"use_karras_sigmas": True, "use_beta_sigmas": True}) for name in ("heun", "lms", "euler")],
        *[(name, {"clip_sample_range": 0}) for name in ("ddim", "ddpm", "heun", "lcm")],
        ("ddpm", {"variance_type": "learned_range"}),
        ("pndm", {"skip_prk_steps": False}),
        ("euler", {"interpolation_type": "log_linear"}),
        ("euler", {"timestep_type": "continuous"}),
        ("dpmsolver++", {"algorithm_type": "dpmsolver"}),
        ("dpmsolver++", {"solver_order": 4}),
        ("dpmsolver++", {"solver_type": "bh3"}),
        ("unipc", {"predict_x0": False}),
        ("unipc", {"lower_order_final": False}),
        *[(name, {"timestep_spacing": "quadratic"}) for name in SAMPLERS if name != "lcm"],
        ("dpmsolver++", {"use_flow_sigmas": True}),
        ("dpmsolver++", {"lambda_min_clipped": -5.1}),
    ],
)
def test_settings_that_a_sampler_does_not_support_are_refused_by_name(name, setting):
    field, value = next(reversed(setting.items()))
    schedule = load_schedule(CONFIG | setting)
    with pytest.raises(InputError, match=f"scheduler_config.json.*{field}") as refusal:
        make_sampler(name, schedule, 5)
    assert repr(value) in str(refusal.value) or "exclude each other" in str(refusal.value)
    if "timestep_spacing" not in setting:  # not all samplers use the others
        make_sampler("euler_ancestral", schedule, 5)


@pytest.mark.parametrize(
    ("name", "num_steps", "settings", "message"),
    [
        ("heunn", 5, {}, "scheduler 'heunn' is not one of ddim, .*lcm, checkpoint"),
        ("euler", 5, {"eta": 0.5}, "eta=0.5 is only for the scheduler 'ddim', not for 'euler'"),
        ("ddim", 5, {"strength": 0.1}, "strength=0.1 of 5 sampling steps: .* leave at least one step"),
        ("ddim", 5, {"strength": 1.5}, "strength=1.5 .* must be at most 1"),
        ("checkpoint", 5, {}, "_class_name='DEISMultistepScheduler' is not one of .*; choose .* by name: ddim"),
        ("lcm", 51, {}, "between 1 and 50, not 51"),
        ("dpmsolver++", 1000, {}, "between 1 and 999, not 1000"),
        *[(name, 0, {}, "must be between 1 and .*, not 0") for name in SAMPLERS],
    ],
)
def test_invalid_arguments_are_refused(name, num_steps, settings, message):
    schedule = load_schedule(CONFIG | {"_class_name": "DEISMultistepScheduler", "num_train_timesteps": 1000})
    with pytest.raises(InputError, match=message):
        make_sampler(name, schedule, num_steps, **settings)


def test_distillation_cannot_have_had_more_steps_than_there_are():
    with pytest.raises(InputError, match="original_inference_steps=2000 must be between 1 and 1000"):
        make_sampler("lcm", load_schedule(CONFIG | {"original_inference_steps": 2000}), 4)


def test_inversion_cannot_infer_noise_where_there_is_none():
    schedule = load_schedule(CONFIG | {"prediction_type": "sample", "set_alpha_to_one": True})
    with pytest.raises(InputError, match="inversion needs set_alpha_to_one=False"):
        invert(fake_model, schedule, NOISE, 5)
