"""Samplers, which turn noise into clean latents by repeated calls of the denoiser; a file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from utilgen_jax.diffusion.samplers.ddim import make_ddim
from utilgen_jax.diffusion.samplers.ddpm import make_ddpm
from utilgen_jax.diffusion.samplers.dpm_solver import make_dpm_solver
from utilgen_jax.diffusion.samplers.euler import make_euler
from utilgen_jax.diffusion.samplers.guidance import ApplyUNet, Denoiser, UNetInputs, guided, guided_beside
from utilgen_jax.diffusion.samplers.lcm import make_lcm
from utilgen_jax.diffusion.samplers.pndm import make_pndm
from utilgen_jax.diffusion.samplers.run import invert, run_sampler, run_sampler_beside
from utilgen_jax.diffusion.samplers.sampler import GaussianSampler, Sampler, SamplerState
from utilgen_jax.diffusion.schedules import NoiseSchedule
from utilgen_jax.errors import InputError

__all__ = [
    "SAMPLERS",
    "ApplyUNet",
    "Denoiser",
    "GaussianSampler",
    "Sampler",
    "SamplerState",
    "UNetInputs",
    "guided",
    "guided_beside",
    "invert",
    "make_sampler",
    "run_sampler",
    "run_sampler_beside",
    "sampler_name",
]

# name -> maker(schedule, number of steps from pure noise, number of first steps to skip)
SAMPLERS: dict[str, Callable[[NoiseSchedule, int, int], Sampler]] = {
    "ddim": make_ddim,
    "ddpm": make_ddpm,
    "pndm": make_pndm,
    "dpmsolver++": make_dpm_solver,
    "euler": make_euler,
    "lcm": make_lcm,
}
_CLASS_NAMES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "DPMSolverMultistepScheduler": "dpmsolver++",
    "EulerDiscreteScheduler": "euler",
    "LCMScheduler": "lcm",
}


def sampler_name(scheduler_config: Mapping[str, Any]) -> str:
    """Returns the name in `SAMPLERS` of the scheduler of a `scheduler_config.json`.

    Raises:
        InputError: the scheduler is not supported.
    """
    class_name = scheduler_config.get("_class_name")
    if class_name not in _CLASS_NAMES:
        raise InputError(
            f"scheduler_config.json: _class_name={class_name!r} is not one of {', '.join(_CLASS_NAMES)}; choose the "
            f"scheduler by name: {', '.join(SAMPLERS)}"
        )
    return _CLASS_NAMES[class_name]


def make_sampler(
    name: str, schedule: NoiseSchedule, num_steps: int, *, strength: float = 1.0, eta: float = 0.0
) -> Sampler:
    """Makes a sampler. Its tables are computed in float64 on the host, so that the schedule must not be traced.

    Args:
        name: key of `SAMPLERS`, or 'checkpoint' for the scheduler of the schedule's settings.
        schedule: noise schedule with the settings of `scheduler_config.json`.
        num_steps: number of steps from pure noise.
        strength: fraction of the steps to run, in (0, 1], without the noisiest ones; for image-to-image.
        eta: noise of DDIM's steps; 0 for none, 1 for that of DDPM.

    Raises:
        InputError: the name is unknown, or the number of steps, the strength or a setting of the schedule is invalid.
    """
    if name == "checkpoint":
        name = sampler_name(schedule.settings)
    if name not in SAMPLERS:
        raise InputError(f"scheduler {name!r} is not one of {', '.join(SAMPLERS)}, checkpoint")
    if eta and name != "ddim":
        raise InputError(f"eta={eta} is only for the scheduler 'ddim', not for {name!r}")
    num_kept = int(num_steps * strength)
    if not 0.0 <= strength <= 1.0 or (num_steps > 0 and num_kept == 0):
        raise InputError(
            f"strength={strength} of {num_steps} sampling steps: must be at most 1, and leave at least one step"
        )
    maker = partial(make_ddim, eta=eta) if name == "ddim" else SAMPLERS[name]
    return maker(schedule, num_steps, num_steps - num_kept)
