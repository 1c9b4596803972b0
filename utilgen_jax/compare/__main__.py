"""Compares methods over shots and seeds, with confidence intervals.

  python -m utilgen_jax.compare --config=configs/digits.py --methods=real,vanilla,utilgen --shots=1,2,5,10 \\
      --seeds=10 --workdir=runs/compare
  python -m utilgen_jax.compare --config=configs/digits.py --ablate=joint --workdir=runs/compare
  python -m utilgen_jax.compare --config=configs/digits.py --protocol=5x,synthetic_only --workdir=runs/protocol
  python -m utilgen_jax.compare --config=configs/digits.py --images_per_shot=1,2,5,10,50 --workdir=runs/curve
  python -m utilgen_jax.compare --config=configs/digits.py:shots=5 --regimes=5x,50x,polysemy --workdir=runs/regimes

All methods of a seed use the same real images and the same classifier config; shared stages, such as a pool, run once.
The same command resumes an interrupted comparison; with --norun it only reports the finished runs. It writes
compare.html, compare.json, compare.md and compare.png. With --images_per_shot, for the data-efficiency curve, every
method with synthetic images runs once for each size of its pool, and curve.png takes the place of compare.png. Exit
status: 0 done, 2 bad input, 130 interrupted, 143 terminated.

To split the work between two machines, run one with --config.seed=0 --seeds=5 and the other with --config.seed=5
--seeds=5. Then --seeds=10 --norun --join=first/compare.json,second/compare.json reports all ten seeds.

With --regimes, presets or protocols of the config, there is a comparison for each, in a folder of its name, and
regimes.md has what every method brings in each of them; --join then names folders, each with a REGIME.json.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from utilgen_jax.compare.plan import PlannedRun, config_of, folder_of, plan_runs, shared_dirs
from utilgen_jax.config import command_line
from utilgen_jax.config.schema import Config, choice_problems
from utilgen_jax.config.validation import with_fields
from utilgen_jax.errors import InputError
from utilgen_jax.methods import ABLATIONS, METHODS

if TYPE_CHECKING:
    from utilgen_jax.compare.statistics import Run

Plan = Sequence[PlannedRun]


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = command_line.common_flags("folder for the runs and the results; created if missing")
    default = [name for name, method in METHODS.items() if not method.only_in_ablations]
    flags.DEFINE_list("methods", default, "methods to compare", flag_values=values)
    flags.DEFINE_string("ablate", None, "compare the parts of a method, in place of --methods", flag_values=values)
    flags.DEFINE_list("shots", [], "labelled images per class, a list; empty: the config's", flag_values=values)
    command_line.define_protocol(values)
    about = "synthetic images for each real one, a list; empty: the config's number of synthetic images"
    flags.DEFINE_list("images_per_shot", [], about, flag_values=values)
    about = "train on each method's synthetic images alone too, and report both; takes longer"
    flags.DEFINE_boolean("also_synthetic_only", False, about, flag_values=values)
    about = "variants of the config, a comparison each, a list; empty: the config alone"
    flags.DEFINE_list("regimes", [], about, flag_values=values)
    flags.DEFINE_integer("seeds", 5, "number of seeds, counted up from the config's", lower_bound=1, flag_values=values)
    flags.DEFINE_list(
        "join", [], "compare.json files of other folders, whose runs are included and not repeated", flag_values=values
    )
    flags.DEFINE_boolean("run", True, "run what is missing; --norun: only report finished runs", flag_values=values)
    return values


def run(argv: Sequence[str]) -> None:
    """Parses the command line, runs what is missing, and writes the comparison.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid.
    """
    values = define_flags()
    overrides, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    methods = _selected_methods(values, problems)
    shots, sizes = (_whole_numbers(values, name, problems) for name in ("shots", "images_per_shot"))
    if 0 in sizes:
        problems.append("--images_per_shot: must be at least 1, got 0; the method `real` has no synthetic images")
    overrides = command_line.protocol_overrides(values, problems) + overrides
    for name in ("config", "workdir"):
        if not values[name].value:
            problems.append(f"--{name}: required, e.g. --config=configs/digits.py --workdir=runs/compare")
    problems += command_line.folder_problems("workdir", values["workdir"].value, may_be_in_bucket=True)
    if not values["config"].value:
        raise command_line.ConfigError(problems)
    regimes = list(dict.fromkeys(values["regimes"].value or []))
    if regimes and sizes:
        problems.append("--regimes, --images_per_shot: give only one")
    comparisons = []
    for regime in regimes or [""]:
        given = command_line.variant_overrides(values["config"].value, regime, problems) + overrides
        config = command_line.read_config(values["config"].value, given, problems)
        command_line.check_buckets(config)
        # Where the classifiers are trained on synthetic images alone anyway, there is nothing to train beside them.
        also = bool(values["also_synthetic_only"].value) and config.classifier.synthetic_fraction < 1
        config = with_fields(config, {"also_synthetic_only": also})
        seeds = range(config.seed, config.seed + int(values["seeds"].value or 1))
        plan = plan_runs(seeds, shots or [config.data.shots], methods, sizes)
        for size in sizes:  # a config that does not go with them is told before anything runs
            config_of(config, PlannedRun(config.data.shots, config.seed, config.method, size))
        joined = [Path(name) / f"{regime}.json" if regime else Path(name) for name in values["join"].value or []]
        comparisons.append((regime, config, plan, joined))

    # JAX is imported only now, so that --help and input errors are fast and touch no device.
    import jax

    from utilgen_jax.compare.regimes import write_regimes
    from utilgen_jax.pretraining.on_demand import pretrain_if_missing
    from utilgen_jax.runtime.distributed import end_together, initialize_distributed
    from utilgen_jax.runtime.working_folder import working_folder

    found, may_run = {}, bool(values["run"].value)
    if may_run:
        initialize_distributed()
    with end_together(), working_folder(str(values["workdir"].value), claims=may_run) as workdir:
        for regime, config, plan, files in comparisons:
            if may_run:
                pretrain_if_missing(config)
            if regime:
                print(f"{regime}:", file=sys.stderr)
            found[regime] = compare(config, workdir / regime, plan, files, may_run)
        if regimes and jax.process_index() == 0:
            write_regimes(workdir, found, methods)


def compare(config: Config, workdir: Path, plan: Plan, joined_files: Sequence[Path], may_run: bool) -> "list[Run]":
    """Runs what is missing of one comparison and writes it.

    Args:
        config: shared by the runs.
        workdir: of the comparison.
        plan: the runs.
        joined_files: compare.json files of other folders.
        may_run: whether anything is run.

    Returns:
        The finished runs, in the first process; the others know none.
    """
    import jax

    from utilgen_jax.compare.join import shared_settings
    from utilgen_jax.compare.report import write_comparison

    joined = _joined_runs(joined_files, config, plan)
    own = [entry for entry in plan if entry not in joined]
    if may_run and own:
        run_all(config, workdir, own)
    if jax.process_index() != 0:
        return []
    runs = [run for entry in own if (run := read_done(config, workdir, entry)) is not None]
    runs += joined.values()
    if not runs:
        raise InputError(f"--workdir: {workdir} has none of these runs; leave --norun out to run them")
    workdir.mkdir(parents=True, exist_ok=True)
    write_comparison(workdir, shared_settings(config), runs, plan)
    return runs


def _joined_runs(files: Sequence[Path], config: Config, plan: Plan) -> "dict[PlannedRun, Run]":
    """Reads the planned runs from the --join files; the first file that has a run provides it."""
    from utilgen_jax.compare.join import read_runs

    found: dict[PlannedRun, Run] = {}
    for file in files:
        for run in read_runs(file, config):
            whole = run.accuracy_synthetic_only is not None or not _needs_synthetic_only(config, run.method)
            if run.entry in plan and whole:
                found.setdefault(run.entry, run)
    return found


def _needs_synthetic_only(config: Config, method: str) -> bool:
    return bool(config.also_synthetic_only and METHODS[method].pool)


def _whole_numbers(values: flags.FlagValues, name: str, problems: list[str]) -> list[int]:
    """Returns the numbers of a list flag, each once; appends input errors to `problems`."""
    texts: list[str] = values[name].value or []
    problems += [f"--{name}: expected whole numbers, got {text!r}" for text in texts if not text.isdigit()]
    return list(dict.fromkeys(int(text) for text in texts if text.isdigit()))


def _selected_methods(values: flags.FlagValues, problems: list[str]) -> list[str]:
    """Returns the methods of --methods or --ablate; appends input errors to `problems`."""
    ablation = values["ablate"].value
    if ablation is not None:
        if values["methods"].present:
            problems.append("--ablate, --methods: give only one; an ablation sets its own methods")
        problems += choice_problems("ablate", ablation, ABLATIONS)
        return list(ABLATIONS.get(ablation, ()))
    methods = list(dict.fromkeys(values["methods"].value or []))
    if not methods:
        problems.append(f"--methods: name at least one of {', '.join(METHODS)}")
    problems += choice_problems("methods", methods, METHODS)
    return methods


def run_all(config: Config, workdir: Path, plan: Plan) -> None:
    """Checks all that the runs read, then runs what is not done yet, and prints the progress.

    Args:
        config: config shared by all runs.
        workdir: folder for the runs, `shots_K/seed_S/METHOD`, and for pools that do not depend on shots, `pool/seed_S`;
            a run with its own number of synthetic images is in `images_per_shot_N/shots_K/seed_S/METHOD`.
        plan: the runs, in execution order.
    """
    import jax

    from utilgen_jax.compare.check import check_plan
    from utilgen_jax.experiment.workdir import check_config, open_workdir
    from utilgen_jax.runtime.folder_lock import check_unlocked, locked_folder

    is_first = jax.process_index() == 0
    if is_first:
        check_unlocked(workdir)
    # The runs of a folder share stages, so their configs may differ only in the fields that `plan` sets.
    check_config(workdir, config)
    check_plan(config, workdir, plan)
    with locked_folder(workdir) if is_first else nullcontext():
        open_workdir(workdir, config)
        _run_waiting(config, workdir, plan)


def _run_waiting(config: Config, workdir: Path, plan: Plan) -> None:
    import jax

    from utilgen_jax import pipeline
    from utilgen_jax.report import format_duration

    waiting = [entry for entry in plan if read_done(config, workdir, entry) is None]
    seconds: list[float] = []
    for number, entry in enumerate(waiting):
        if jax.process_index() == 0:
            count = f"[{len(plan) - len(waiting) + number + 1}/{len(plan)}]"
            left = f" (ETA {format_duration((len(waiting) - number) * sum(seconds) / number)})" if number else ""
            size = f", {entry.images_per_shot} images a shot" if entry.images_per_shot else ""
            print(f"{count} {entry.shots} shots, seed {entry.seed}{size}: {entry.method}{left}", file=sys.stderr)
        start = time.monotonic()
        shared = shared_dirs(config, workdir, entry, plan)
        pipeline.run(config_of(config, entry), folder_of(workdir, entry), shared)
        seconds.append(time.monotonic() - start)


def read_done(config: Config, workdir: Path, entry: PlannedRun) -> "Run | None":
    """Returns a run, or None if it is not done.

    Raises:
        InputError: the run has another config, or its summary is damaged.
    """
    from utilgen_jax.compare.join import checked
    from utilgen_jax.compare.statistics import run_of
    from utilgen_jax.experiment.workdir import check_config

    folder = folder_of(workdir, entry)
    file = folder / "summary.json"
    if not file.is_file():
        return None
    check_config(folder, config_of(config, entry))
    try:
        run = checked(run_of(json.loads(file.read_text(encoding="utf-8")), entry.images_per_shot))
        if run.entry != entry:
            raise ValueError(f"of another run, {run.entry}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error!r}); remove it to run again") from None
    if _needs_synthetic_only(config, entry.method) and run.accuracy_synthetic_only is None:
        return None
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "the same command resumes; with --norun it reports the finished runs"
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())
