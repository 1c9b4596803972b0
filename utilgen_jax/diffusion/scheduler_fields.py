"""The fields of `scheduler_config.json` by class of diffusers: their defaults, and the values that are supported.

A file's missing field takes the default of the class that reads it, and a class does not see the fields of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from utilgen_jax.errors import InputError
from utilgen_jax.models.json_fields import (
    OFF,
    POSITIVE,
    TRUTH,
    WITHOUT_EFFECT,
    Kind,
    either,
    list_of,
    only,
    optional,
    read_fields,
    whole,
)

WHERE = "scheduler_config.json"


class Field(NamedTuple):
    """A field of a class.

    Attributes:
        default: diffusers'.
        kind: the supported values.
    """

    default: Any
    kind: Kind


_BETA = Kind("a number between 0 and 1", lambda value: POSITIVE.accepts(value) and value < 1, is_number=True)
_SWITCH = optional(TRUTH)  # diffusers takes null for false
_SPACING = only("leading", "trailing", "linspace")
_SOLVER_TYPE = only("midpoint", "heun", "logrho", "bh1", "bh2")

_SCHEDULE = {
    "num_train_timesteps": Field(1000, whole(2)),
    "beta_start": Field(1e-4, _BETA),
    "beta_end": Field(0.02, _BETA),
    "beta_schedule": Field("linear", only("linear", "scaled_linear", "squaredcos_cap_v2")),
    "trained_betas": Field(None, OFF),
    "prediction_type": Field("epsilon", only("epsilon", "v_prediction", "sample")),
}
_STEPS = {"timestep_spacing": Field("leading", _SPACING), "steps_offset": Field(0, whole(0))}
_LINSPACED = _STEPS | {"timestep_spacing": Field("linspace", _SPACING)}
_ZERO_SNR = {"rescale_betas_zero_snr": Field(False, _SWITCH)}
_CLIPPING = {"clip_sample": Field(True, _SWITCH), "clip_sample_range": Field(1.0, POSITIVE)}
_NO_THRESHOLDING = {
    "thresholding": Field(False, OFF),
    "dynamic_thresholding_ratio": Field(0.995, WITHOUT_EFFECT),
    "sample_max_value": Field(1.0, WITHOUT_EFFECT),
}
_SIGMAS = {name: Field(False, _SWITCH) for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")}
# The multistep solvers' timesteps are whole, and which ones diffusers takes here hangs on how float32 rounds.
_KARRAS_ALONE = _SIGMAS | {name: Field(False, OFF) for name in ("use_exponential_sigmas", "use_beta_sigmas")}
_SIGMA_RANGE = {"sigma_min": Field(None, optional(POSITIVE)), "sigma_max": Field(None, optional(POSITIVE))}
_NO_FLOW = {
    "use_flow_sigmas": Field(False, OFF),
    "flow_shift": Field(1.0, WITHOUT_EFFECT),
    "use_dynamic_shifting": Field(False, OFF),
    "time_shift_type": Field("exponential", WITHOUT_EFFECT),
}
_FINAL = {
    "final_sigmas_type": Field("zero", only("zero", "sigma_min")),
    "lower_order_final": Field(True, TRUTH),
}

SCHEDULERS: Mapping[str, Mapping[str, Field]] = {
    "DDIMScheduler": {
        **_SCHEDULE,
        **_STEPS,
        **_ZERO_SNR,
        **_CLIPPING,
        **_NO_THRESHOLDING,
        "set_alpha_to_one": Field(True, TRUTH),
    },
    "DDPMScheduler": {
        **_SCHEDULE,
        **_STEPS,
        **_ZERO_SNR,
        **_CLIPPING,
        **_NO_THRESHOLDING,
        "variance_type": Field("fixed_small", only("fixed_small", None)),
    },
    "PNDMScheduler": {
        **_SCHEDULE,
        **_STEPS,
        # The Runge-Kutta steps at the start, which Stable Diffusion's checkpoints skip.
        "skip_prk_steps": Field(False, only(True)),
        "set_alpha_to_one": Field(False, TRUTH),
    },
    "DPMSolverMultistepScheduler": {
        **_SCHEDULE,
        **_LINSPACED,
        **_ZERO_SNR,
        **_NO_THRESHOLDING,
        **_KARRAS_ALONE,
        **_NO_FLOW,
        **_FINAL,
        "algorithm_type": Field("dpmsolver++", only("dpmsolver++", "sde-dpmsolver++", "deis")),
        "solver_order": Field(2, only(1, 2, 3)),
        "solver_type": Field("midpoint", _SOLVER_TYPE),
        "euler_at_final": Field(False, _SWITCH),
        "use_lu_lambdas": Field(False, OFF),
        "lambda_min_clipped": Field(float("-inf"), only(float("-inf"))),
        "variance_type": Field(None, OFF),
    },
    "UniPCMultistepScheduler": {
        **_SCHEDULE,
        **_LINSPACED,
        **_ZERO_SNR,
        **_NO_THRESHOLDING,
        **_KARRAS_ALONE,
        **_SIGMA_RANGE,
        **_NO_FLOW,
        **_FINAL,
        "solver_order": Field(2, only(1, 2, 3)),
        "solver_type": Field("bh2", _SOLVER_TYPE),
        "predict_x0": Field(True, only(True)),
        "disable_corrector": Field((), either(only((), []), list_of(whole(0)))),
        "solver_p": Field(None, OFF),
        "shift_terminal": Field(None, OFF),
    },
    "EulerDiscreteScheduler": {
        **_SCHEDULE,
        **_LINSPACED,
        **_ZERO_SNR,
        **_SIGMAS,
        **_SIGMA_RANGE,
        "final_sigmas_type": _FINAL["final_sigmas_type"],
        "interpolation_type": Field("linear", only("linear")),
        "timestep_type": Field("discrete", only("discrete")),
    },
    "EulerAncestralDiscreteScheduler": {**_SCHEDULE, **_LINSPACED, **_ZERO_SNR},
    "HeunDiscreteScheduler": {
        **_SCHEDULE,
        **_LINSPACED,
        **_SIGMAS,
        "beta_start": Field(0.00085, _BETA),
        "beta_end": Field(0.012, _BETA),
        "clip_sample": Field(False, _SWITCH),
        "clip_sample_range": Field(1.0, POSITIVE),
    },
    "LMSDiscreteScheduler": {**_SCHEDULE, **_LINSPACED, **_SIGMAS},
    "LCMScheduler": {
        **_SCHEDULE,
        **_STEPS,
        **_ZERO_SNR,
        **_CLIPPING,
        **_NO_THRESHOLDING,
        "beta_start": Field(0.00085, _BETA),
        "beta_end": Field(0.012, _BETA),
        "beta_schedule": Field("scaled_linear", _SCHEDULE["beta_schedule"].kind),
        "clip_sample": Field(False, _SWITCH),
        "set_alpha_to_one": Field(True, TRUTH),
        # Its timesteps are those of its distillation.
        "timestep_spacing": Field("leading", WITHOUT_EFFECT),
        "steps_offset": Field(0, WITHOUT_EFFECT),
        "original_inference_steps": Field(50, whole(1)),
        "timestep_scaling": Field(10.0, POSITIVE),
    },
}

# Fields of classes that are none of these, but whose files these can read: KDPM2, EDM, DPMSolverSDE and others.
_OF_OTHERS = ("noise_sampler_seed", "rho", "sigma_data", "sigma_schedule", "use_clipped_model_output")
_KNOWN = {name: WITHOUT_EFFECT for fields in SCHEDULERS.values() for name in fields}
_KNOWN |= dict.fromkeys(_OF_OTHERS, WITHOUT_EFFECT)
# Of diffusers before 0.12: what `prediction_type` says today, and the framework.
_KNOWN |= {"predict_epsilon": only(True, None), "tensor_format": WITHOUT_EFFECT}


def schedule_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the noise schedule, of a parsed file of any class, with its class's defaults.

    Raises:
        InputError: a field is unknown or not supported, or missing where the class's defaults are not known.
    """
    class_name = config.get("_class_name", "DDIMScheduler")
    fields = SCHEDULERS.get(class_name) if isinstance(class_name, str) else None
    of_schedule = [name for name in (*_SCHEDULE, *_ZERO_SNR) if name in (fields or _SCHEDULE)]
    kinds = {name: (fields or _SCHEDULE)[name].kind for name in of_schedule}
    values = read_fields(WHERE, _KNOWN | kinds, config)
    needed = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    missing = [name for name in needed if name not in config]
    if fields is None and missing:
        raise InputError(
            f"{WHERE}: {', '.join(missing)} missing, and the defaults of {class_name!r} are not known; state them, or "
            f"make it one of {', '.join(SCHEDULERS)}"
        )
    defaults = {name: (fields or _SCHEDULE)[name].default for name in of_schedule}
    return defaults | {name: value for name, value in values.items() if name in kinds}


def class_settings(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings that a class of diffusers reads in a parsed file, with its defaults.

    Raises:
        InputError: a value is not supported; lists all.
    """
    fields = SCHEDULERS[class_name]
    defaults = {name: field.default for name, field in fields.items()}
    settings = defaults | {name: value for name, value in config.items() if name in fields}
    where = f"{WHERE}, read by {class_name}"
    settings = read_fields(where, {name: field.kind for name, field in fields.items()}, settings)
    chosen = [name for name in _SIGMAS if settings.get(name)]
    if len(chosen) > 1:
        raise InputError(f"{where}: {' and '.join(chosen)} exclude each other; set one of them")
    return settings


def as_stable_diffusion(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a file as diffusers' Stable Diffusion pipelines correct it, but for the unCLIP ones.

    Their steps begin at 1, and latents are not clipped.
    """
    return {**config, "steps_offset": 1, "clip_sample": False}
