"""Several methods, over shots and seeds, in one table with intervals.

  python -m utilgen_jax.compare --config=configs/digits.py --methods=real,vanilla,utilgen --shots=1,2,5,10 \\
      --seeds=10 --workdir=runs/compare

All methods of a seed see the same real pictures, the same pool and the same classifier recipe; what they share is
computed once. Rerunning the command continues. It writes compare.json, compare.md and accuracy.png. Exit status: 0
done, 2 bad input, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from utilgen_jax import cli
from utilgen_jax.config import nearest, set_field
from utilgen_jax.config_check import checked
from utilgen_jax.errors import InputError
from utilgen_jax.methods import METHODS


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = cli.common_flags("folder for all runs and the table; made if missing")
    flags.DEFINE_list("methods", list(METHODS), "rows of the table", flag_values=values)
    flags.DEFINE_list("shots", [], "labelled pictures a class, one or several; empty: the config's", flag_values=values)
    flags.DEFINE_integer("seeds", 5, "how many, counted up from the config's", lower_bound=1, flag_values=values)
    return values


def run(argv: Sequence[str]) -> None:
    """Reads the command line, runs what is missing, and writes the table.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong.
    """
    values = define_flags()
    overrides, problems = cli.parse_flags(values, argv)
    if values["help"].value:
        print(cli.help_text(__doc__ or "", values))
        return
    methods: list[str] = values["methods"].value or []
    shots_texts: list[str] = values["shots"].value or []
    for method in methods:
        if method not in METHODS:
            problems.append(f"--methods: {method!r} is unknown; the nearest is {nearest(method, METHODS)!r}")
    problems += [f"--shots: expected whole numbers, got {text!r}" for text in shots_texts if not text.isdigit()]
    for name in ("config", "workdir"):
        if not values[name].value:
            problems.append(f"--{name}: say which, such as --config=configs/digits.py --workdir=runs/compare")
    if not values["config"].value:
        raise cli.ConfigError(problems)
    config = cli.read_config(values["config"].value, overrides, problems)
    workdir = Path(str(values["workdir"].value))
    shots = [int(text) for text in shots_texts] or [config.data.shots]
    seeds = range(config.seed, config.seed + int(values["seeds"].value or 1))

    # JAX is imported only now, so that --help and mistakes answer at once and touch no device.
    from utilgen_jax import comparison, parallel

    parallel.initialize_distributed()
    runs = run_all(config, workdir, methods, shots, seeds)
    comparison.write_comparison(workdir, runs, methods)


def run_all(
    config: ConfigDict, workdir: Path, methods: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Runs every method at every number of shots and every seed; a run that is already done is read, not repeated.

    Args:
        config: What all runs have in common.
        workdir: Folder for the runs: `shots_K/seed_S/METHOD`, and for pools that do not depend on shots `pool/seed_S`.
        methods: Names of `methods.METHODS`.
        shots: Labelled pictures a class.
        seeds: Seeds.

    Returns:
        One summary for each run, in the order shots, seeds, methods.
    """
    from utilgen_jax import pipeline
    from utilgen_jax.job import Shared
    from utilgen_jax.workdir import open_workdir

    # Stages are shared among all runs of the folder, so all of them are of this config but for what `plan` changes.
    open_workdir(workdir, config)
    summaries = []
    plan = [(number, seed, method) for seed in seeds for number in shots for method in methods]
    for done, (number, seed, method) in enumerate(plan):
        folder = workdir / f"shots_{number}" / f"seed_{seed}"
        own = {"method": method, "seed": seed, "data.shots": number, "baselines": ()}
        run_config = with_fields(config, own)
        finished = folder / method / "summary.json"
        if finished.is_file():
            open_workdir(folder / method, run_config)
            summary = _read_summary(finished)
        else:
            print(f"[{done + 1}/{len(plan)}] {number} shots, seed {seed}: {method}", file=sys.stderr)
            shared = Shared(
                stages=folder / "stages", pools=folder / "pool", shotless_pools=workdir / "pool" / f"seed_{seed}"
            )
            summary = pipeline.run(run_config, folder / method, shared)
        summaries.append(summary)
    return sorted(summaries, key=lambda summary: (summary["shots"], summary["seed"], methods.index(summary["method"])))


def with_fields(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    """Returns a checked copy of a config with some fields changed; InputError where the result is not valid."""
    copy = ConfigDict(config.to_dict(), type_safe=False)
    for path, value in fields.items():
        set_field(copy, path, value)
    return checked(copy)


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error}); remove it to run again") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return cli.exit_status(lambda: run(sys.argv if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
