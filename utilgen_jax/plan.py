"""What a config needs on TPUs, without having them: its programs, compiled here for a topology's chips.

  pip install -e .[tpu]
  python -m utilgen_jax.plan --config=configs/cifar.py --topology=v5e:2x2
  python -m utilgen_jax.plan --config=configs/cifar.py --topology=v4:2x2x1 --programs=lora \\
      --config.generator.batch_size=4 --config.parallel.fsdp=4

For each program it prints the memory that a chip needs against what it has, the operations of all chips, and the time
they take at the chips' peak, which no run undercuts; then all figures as one JSON object, the last line. No weights are
needed. At Stable Diffusion's size a program compiles for minutes. Exit status: 0 done, also where a program does not
fit; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from utilgen_jax import cli
from utilgen_jax.config import nearest
from utilgen_jax.generator.published import ARCHITECTURES
from utilgen_jax.planning.chips import CHIPS, TOPOLOGIES, check_topology

if TYPE_CHECKING:
    from utilgen_jax.planning.compiling import Figures
    from utilgen_jax.planning.programs import Job

GIB = 2**30
PROGRAM_NAMES = ("unet", "sample", "lora")


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = cli.common_flags(workdir_help=None)
    flags.DEFINE_string("topology", None, f"the chips: {', '.join(TOPOLOGIES)}", flag_values=values)
    flags.DEFINE_string(
        "architecture",
        None,
        f"a published one in place of the checkpoint's: {', '.join(ARCHITECTURES)}",
        flag_values=values,
    )
    flags.DEFINE_list("programs", list(PROGRAM_NAMES), "what to compile", flag_values=values)
    flags.DEFINE_string(
        "gradient_checkpointing",
        "none",
        "what training computes again rather than keep: none, block, layer",
        flag_values=values,
    )
    return values


def run(argv: Sequence[str]) -> None:
    """Reads the command line, compiles and prints.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong, or libtpu is not installed.
    """
    values = define_flags()
    overrides, problems = cli.parse_flags(values, argv)
    if values["help"].value:
        print(cli.help_text(__doc__ or "", values))
        return
    for name, example in (("config", "configs/cifar.py"), ("topology", "v5e:2x2")):
        if not values[name].value:
            problems.append(f"--{name}: say which, such as --{name}={example}")
    if values["topology"].value:
        problems += check_topology(values["topology"].value)
    for name, given, valid in (
        ("architecture", [values["architecture"].value or "sd15"], ARCHITECTURES),
        ("programs", values["programs"].value, PROGRAM_NAMES),
        ("gradient_checkpointing", [values["gradient_checkpointing"].value], POLICIES),
    ):
        problems += [
            f"--{name}: {word!r} is unknown; the nearest is {nearest(word, valid)!r}, all are {', '.join(valid)}"
            for word in given
            if word not in valid
        ]
    if not values["config"].value:
        raise cli.ConfigError(problems)
    config = cli.read_config(values["config"].value, overrides, problems)
