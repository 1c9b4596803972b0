"""Which programs each method runs, and what a program needs on the chips of a run."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from utilgen_jax.plan.compiling import Figures, bytes_on_chip, compile_program
from utilgen_jax.plan.programs import PROGRAMS, PlannedRun, Program
from utilgen_jax.plan.trainings import TRAININGS

ALL_PROGRAMS: Mapping[str, Program] = {**PROGRAMS, **TRAININGS}

_OF_GENERATOR: Mapping[str, tuple[str, ...]] = {
    "vanilla": ("sample",),
    "captions": ("sample",),
    "augcond": ("sample",),
    "datadream": ("lora", "sample"),
    "difficulty": ("difficulty", "sample"),
    "deliberate_practice": ("sample", "guided_sample"),
    "saflex": ("sample",),
    "utilgen": ("textual_inversion", "dpo", "per_image", "sample"),
    "joint": ("sample", "bilevel"),
}


def programs_of(method: str) -> tuple[str, ...]:
    """The names of a method's large programs; a captioner is not ours."""
    found = [names for known, names in _OF_GENERATOR.items() if f"{method}_".startswith(f"{known}_")]
    return (*(found[0] if found else ()), "classifier")


def plan_program(name: str, run: PlannedRun, available_bytes: int, full: bool = False) -> Figures:
    """Compiles one of `ALL_PROGRAMS` for the run's chips and says what it needs; see `compile_program`."""
    program, params = ALL_PROGRAMS[name], run.params()
    taken = {component: params.pop(component) for component in program.components if component in params}
    call = program.call(run, taken)  # without the mesh, whose chips are not here to compute anything on
    with jax.set_mesh(run.mesh):
        return compile_program(call, bytes_on_chip(params), available_bytes, full)
