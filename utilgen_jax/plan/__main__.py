"""What a config's programs need on TPUs, without having any: they are compiled here for a topology's chips.

  pip install -e .[tpu]
  python -m utilgen_jax.plan --config=configs/cifar.py:method=utilgen --topology=v5e:2x2
  python -m utilgen_jax.plan --config=configs/cifar.py --topology=v4:2x2x1 --programs=lora \\
      --config.generator.gradient_checkpointing=blocks --config.generator.batch_size=32 --config.parallel.fsdp=4
  python -m utilgen_jax.plan --config=configs/cifar.py --topology=v5e:4x4 --programs=bilevel \\
      --config.classifier.name=resnet50 --config.data.image_size=224 --config.classifier.dtype=bfloat16

For each program it prints the memory that a chip needs against what it has, the operations of all chips, the seconds
that these take at the chips' peak, which no run undercuts, how often a run calls it, and the hours of all calls: of the
products at a share of the peak that good runs reach, or of the bytes where these take longer ("memory"). Then the hours
and the price of the whole run; and all figures as one JSON object, the last line.
No weights are needed; the classifier is planned as if all of it were trained. XLA is told to save memory wherever it
can, by recomputing, and is stopped before it generates code, which takes a minute or two. What does not fit then is
compiled once more, to half of the memory: XLA does not always save most where it has least. With --full it compiles to
the end, for a chip with the memory that it has, which takes many minutes for some programs of Stable Diffusion's size,
and tells what stands in the program: kernels, bytes, copies, float32, collectives.
Exit status: 0 done, also where a program does not fit; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.config import command_line
from utilgen_jax.config.schema import Config, choice_problems, flatten
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.joint import joint_program
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.generator.find_architecture import find_architecture
from utilgen_jax.generator.stable_diffusion import Architecture
from utilgen_jax.joint.program import JointProgram
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.plan import table
from utilgen_jax.plan.hours import RunSize, calls, cost, summary
from utilgen_jax.plan.methods import ALL_PROGRAMS, plan_program, programs_of
from utilgen_jax.plan.programs import NUM_CLASSES, PlannedRun
from utilgen_jax.plan.topology import topology_mesh
from utilgen_jax.runtime.chips import CHIPS, TOPOLOGIES


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = command_line.common_flags(workdir_help=None)
    programs = "; ".join(f"{name}: {program.help}" for name, program in ALL_PROGRAMS.items())
    flags.DEFINE_string("topology", None, f"the chips: {', '.join(TOPOLOGIES)}", flag_values=values)
    flags.DEFINE_list(
        "programs", ["all"], f"what to compile; all: what config.method runs ({programs})", flag_values=values
    )
    flags.DEFINE_string(
        "architecture",
        None,
        f"a published one, in place of the checkpoint's: {', '.join(ARCHITECTURES)}",
        flag_values=values,
    )
    flags.DEFINE_integer("num_classes", 10, "of the data, for the hours", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "num_images",
        0,
        "labelled images, for the hours; 0: config.data.shots a class",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean("full", False, "compile to the end, code too, which takes many minutes", flag_values=values)
    return values


def run(argv: Sequence[str]) -> None:
    """Reads the command line, compiles the programs and prints what they need.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong, or libtpu is not installed.
    """
    values = define_flags()
    overrides, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    settings: dict[str, Any] = {name: values[name].value for name in values}
    problems += check_arguments(settings)
    if not settings["config"]:
        raise command_line.ConfigError(problems)
    config = command_line.read_config(settings["config"], overrides, problems)
    size = RunSize(
        config, settings["num_classes"], settings["num_images"] or settings["num_classes"] * config.data.shots
    )
    if not size.num_real:
        raise InputError("--num_images: say how many labelled images there are, as config.data.shots=0 takes all")

    jax.config.update("jax_platforms", "cpu")  # this machine's own accelerators are not needed
    planned, origin = plan_run(config, settings)
    chip = CHIPS[settings["topology"].partition(":")[0]]
    plan: dict[str, Any] = {
        **{name: settings[name] for name in ("topology", "full")},
        "gradient_checkpointing": config.generator.gradient_checkpointing,
        "chips": planned.mesh.size,
        "mesh": dict(planned.mesh.shape),
        "architecture": origin,
        "batch_size": planned.sampling.batch_size,
        "image_size": planned.sampling.image_size,
        "dtype": planned.dtype.name,
        "available_bytes": int(chip.memory * 2**30),
        "peak_flops_per_second": chip.flops * planned.mesh.size,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "programs": {},
    }
    print(table.heading(plan))
    names = [name for name in settings["programs"] if name != "all"]
    if "all" in settings["programs"]:
        names += [name for name in programs_of(config.method) if name not in names]
    for name in names:
        print(f"compiling {name} ...", file=sys.stderr)
        figures = plan_program(name, planned, plan["available_bytes"], settings["full"])
        plan["programs"][name] = row = {
            **dataclasses.asdict(figures),
            "fits": figures.needed_bytes <= plan["available_bytes"],
            "seconds_at_peak": figures.flops / plan["peak_flops_per_second"],
            "calls": calls(name, size),
            **dataclasses.asdict(cost(calls(name, size), figures.flops, figures.moved_bytes, chip, planned.mesh.size)),
        }
        print(table.line(name, row), flush=True)
        if figures.hlo is not None:
            print(table.compiled_line(row, chip.bandwidth), flush=True)
        if not row["fits"]:
            ways = table.ways_out(plan, ALL_PROGRAMS[name], flatten(config))
            print(f"{'':8} does not fit; try {ways}", flush=True)
    # The UNet alone is what the sampler calls.
    counted = [row for name, row in plan["programs"].items() if name != "unet"]
    flops = sum(row["calls"] * row["flops"] for row in counted)
    plan["hours"] = sum(row["hours"] for row in counted)
    plan["dollars"] = plan["hours"] * planned.mesh.size * chip.dollars
    print(f"\n{summary(flops, plan['topology'], plan['hours'], size)}")
    print(json.dumps(plan))


def check_arguments(settings: dict[str, Any]) -> list[str]:
    """Lists what is wrong with the flags, each with the nearest valid name."""
    examples = {"config": "configs/cifar.py", "topology": "v5e:2x2", "programs": "unet,lora"}
    problems = [
        f"--{name}: say which, such as --{name}={example}" for name, example in examples.items() if not settings[name]
    ]
    chip = (settings["topology"] or "").partition(":")[0]
    layouts = [name for name in TOPOLOGIES if name.startswith(f"{chip}:")] or TOPOLOGIES
    choices = {
        "topology": layouts,
        "programs": ("all", *ALL_PROGRAMS),
        "architecture": ARCHITECTURES,
    }
    for name, valid in choices.items():
        problems += choice_problems(name, settings[name], valid)
    return problems


def plan_run(config: Config, settings: dict[str, Any]) -> tuple[PlannedRun, str]:
    """Finds the architecture and the chips; returns what is to be planned, and the architecture's origin."""
    architecture, origin = find_architecture(
        config.generator.checkpoint,
        config.generator.revision or None,
        settings["architecture"],
        dtype=jnp.dtype(config.generator.dtype),
        gradient_checkpointing=config.generator.gradient_checkpointing,
    )
    architecture.check_image_size(config.generator.image_size)
    planned = PlannedRun(
        architecture=architecture,
        mesh=topology_mesh(settings["topology"], config.parallel.data, config.parallel.fsdp),
        dtype=jnp.dtype(config.generator.dtype),
        config=config,
        classifier=Classifier(
            build_classifier(
                config.classifier.name,
                NUM_CLASSES,
                config.classifier.width,
                config.data.image_size,
                jnp.dtype(config.classifier.dtype),
            ),
            config.classifier.normalization,
        ),
        joint=_joint_program(config, architecture),
    )
    if planned.sampling.batch_size % planned.mesh.size:
        raise InputError(
            f"config.generator.batch_size={planned.sampling.batch_size}: does not divide among {planned.mesh.size} "
            "chips; make it a multiple of them"
        )
    return planned, origin


def _joint_program(config: Config, architecture: Architecture) -> JointProgram:
    """As in a run, but of as many given, generated and validation images as the generator has in a batch."""
    batch_size = config.generator.batch_size
    classifier = dataclasses.replace(config.classifier, batch_size=batch_size, synthetic_fraction=0.5)
    sees = ClassifierInput(NUM_CLASSES, config.data.image_size, config.data.channels)
    program = joint_program(config, classifier, sees, architecture)
    return dataclasses.replace(program, joint=dataclasses.replace(program.joint, num_generated=batch_size))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), "nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
