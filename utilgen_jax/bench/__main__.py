"""Times this package, alone or against PyTorch on the same machine in the same run.

  python -m utilgen_jax.bench BENCHMARK [--against=torch] [flags]
  python -m utilgen_jax.bench BENCHMARK --help

The table is for people; the last line on standard output is one JSON object with all figures. Exit status: 0 done,
1 the two sides do not compute the same, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from absl import flags

from utilgen_jax.bench import (
    adapter,
    bilevel,
    classifier,
    device,
    difficulty,
    job,
    precision,
    sampling,
    scaling,
    unet,
    valuation,
)
from utilgen_jax.config import command_line
from utilgen_jax.errors import nearest

# A benchmark is a module with a docstring for --help and
#   define_flags(values): adds its flags to the ones below; one called config is read as a config file,
#   check_settings(settings) -> list of problems: of the flags' values, before a device is touched,
#   run(settings) -> (table, figures): figures are JSON-ready; its 'agree' is False where the sides differ.
BENCHMARKS: Mapping[str, ModuleType] = {
    "unet": unet,
    "sampling": sampling,
    "classifier": classifier,
    "bilevel": bilevel,
    "precision": precision,
    "adapter": adapter,
    "difficulty": difficulty,
    "valuation": valuation,
    "job": job,
    "device": device,
    "scaling": scaling,
}

_AGAINST = ("none", "torch")


def define_flags() -> flags.FlagValues:
    """Returns the flags that every benchmark has, not yet parsed."""
    values = flags.FlagValues()
    flags.DEFINE_string("against", "none", f"what to time beside ours: {', '.join(_AGAINST)}", flag_values=values)
    flags.DEFINE_integer("repeats", 10, "timings of each side, taken in turns", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("warmup", 1, "calls before them, after the first", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def run(argv: Sequence[str]) -> bool:
    """Reads the command line and runs the benchmark.

    Args:
        argv: the command line, its first entry the program, its second the benchmark.

    Returns:
        Whether both sides compute the same (True where there is only one).

    Raises:
        InputError: something the user gave is wrong.
    """
    program, *words = argv
    values = define_flags()
    named = bool(words) and not words[0].startswith("-")
    name = words.pop(0) if named else ""
    benchmark = BENCHMARKS.get(name)
    if benchmark is not None:
        benchmark.define_flags(values)
    elif not named and {"--help", "--helpfull", "-h"} & set(words):
        print(command_line.help_text(f"{__doc__}\nBenchmarks: {', '.join(BENCHMARKS)}", values))
        return True
    else:
        known = ", ".join(BENCHMARKS)
        wrong = f"{name}: no such benchmark; the nearest is {nearest(name, BENCHMARKS)}" if named else "say which"
        raise command_line.ConfigError([f"{wrong} (python -m utilgen_jax.bench BENCHMARK, one of {known})"])
    overrides, problems = command_line.parse_flags(values, [program, *words])
    if values["help"].value:
        print(command_line.help_text(benchmark.__doc__ or "", values))
        return True
    settings = command_line.flag_settings(values)
    if settings["against"] not in _AGAINST:
        problems.append(f"--against={settings['against']}: is not one of {', '.join(_AGAINST)}")
    problems += benchmark.check_settings(settings)
    if "config" in settings:
        settings["config"] = command_line.read_config(settings["config"], overrides, problems)
    if problems:
        raise command_line.ConfigError(problems)
    if settings["against"] != "none":
        # Two frameworks share one device: ours must not take most of its memory at the start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    table, figures = benchmark.run(settings)
    print(table)
    print(json.dumps(figures, allow_nan=False))
    return figures.get("agree", True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    agree = True

    def command() -> None:
        nonlocal agree
        agree = run(sys.argv if argv is None else argv)

    status = command_line.exit_status(command, "nothing was kept; the same command begins anew")
    if not agree:
        print("error: the two sides do not compute the same; the ratio compares different things", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
