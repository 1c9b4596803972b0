"""Samplers, which turn noise into clean latents by repeated calls of the denoiser; a file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from utilgen_jax.diffusion.samplers.ddim import make_ddim
from utilgen_jax.diffusion.samplers.ddpm import make_ddpm
from utilgen_jax.diffusion.samplers.dpm_solver import make_dpm_solver
from utilgen_jax.diffusion.samplers.euler import make_euler, make_euler_ancestral
from utilgen_jax.diffusion.samplers.guidance import ApplyUNet, Denoiser, UNetInputs, guided, guided_beside
from utilgen_jax.diffusion.samplers.heun import make_heun
from utilgen_jax.diffusion.samplers.lcm import make_lcm
from utilgen_jax.diffusion.samplers.lms import make_lms
from utilgen_jax.diffusion.samplers.pndm import make_pndm
from utilgen_jax.diffusion.samplers.run import invert, run_sampler, run_sampler_beside
from utilgen_jax.diffusion.samplers.sampler import GaussianSampler, Sampler, SamplerState
from utilgen_jax.diffusion.samplers.unipc import make_unipc
from utilgen_jax.diffusion.schedules import NoiseSchedule, read_by
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

Maker = Callable[[NoiseSchedule, int, int], Sampler]


class Kind(NamedTuple):
    """A sampler that has a name.

    Attributes:
        class_name: diffusers' class, whose fields of `scheduler_config.json` it reads.
        make: (schedule, number of steps from pure noise, number of first steps to skip) -> the sampler.
        settings: fields in place of the file's.
    """

    class_name: str
    make: Maker
    settings: Mapping[str, Any] = MappingProxyType({})


_KARRAS = {"use_karras_sigmas": True, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: Mapping[str, Kind] = {
    "ddim": Kind("DDIMScheduler", make_ddim),
    "ddpm": Kind("DDPMScheduler", make_ddpm),
    "pndm": Kind("PNDMScheduler", make_pndm),
    "dpmsolver++": Kind("DPMSolverMultistepScheduler", make_dpm_solver),
    "dpmsolver++_karras": Kind("DPMSolverMultistepScheduler", make_dpm_solver, _KARRAS),
    "dpmsolver++_sde": Kind("DPMSolverMultistepScheduler", make_dpm_solver, _SDE),
    "dpmsolver++_sde_karras": Kind("DPMSolverMultistepScheduler", make_dpm_solver, _SDE | _KARRAS),
    "unipc": Kind("UniPCMultistepScheduler", make_unipc),
    "euler": Kind("EulerDiscreteScheduler", make_euler),
    "euler_karras": Kind("EulerDiscreteScheduler", make_euler, _KARRAS),
    "euler_ancestral": Kind("EulerAncestralDiscreteScheduler", make_euler_ancestral),
    "heun": Kind("HeunDiscreteScheduler", make_heun),
    "lms": Kind("LMSDiscreteScheduler", make_lms),
    "lms_karras": Kind("LMSDiscreteScheduler", make_lms, _KARRAS),
    "lcm": Kind("LCMScheduler", make_lcm),
}
# The first name of each class: what a file says of Karras' spacing and the like is read from it.
_NAMES = {kind.class_name: name for name, kind in reversed([*SAMPLERS.items()])}


def sampler_name(scheduler_config: Mapping[str, Any]) -> str:
    """Returns the name in `SAMPLERS` of the scheduler of a `scheduler_config.json`.

    Raises:
        InputError: the scheduler is not supported.
    """
    class_name = scheduler_config.get("_class_name")
    if class_name not in _NAMES:
        raise InputError(
            f"scheduler_config.json: _class_name={class_name!r} is not one of {', '.join(_NAMES)}; choose the "
            f"scheduler by name: {', '.join(SAMPLERS)}"
        )
    return _NAMES[class_name]


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
    kind = SAMPLERS[name]
    overrides = dict(kind.settings)
    if name == "pndm" and schedule.settings.get("_class_name") != kind.class_name:
        overrides["skip_prk_steps"] = schedule.settings.get("skip_prk_steps", True)  # Stable Diffusion's form
    schedule = read_by(schedule, kind.class_name, **overrides)
    maker = partial(make_ddim, eta=eta) if name == "ddim" else kind.make
    return maker(schedule, num_steps, num_steps - num_kept)
