"""Few real images in, a better classifier and a synthetic training set out.

  python -m utilgen_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m utilgen_jax.main --config=configs/digits.py:method=vanilla,shots=5 --workdir=runs/vanilla
  python -m utilgen_jax.main --config=configs/imagefolder.py --config.data.path=my_images --workdir=runs/mine
  python -m utilgen_jax.main --config=configs/digits.py --workdir=gs://bucket/digits

Rerunning a command on its workdir continues where it was last saved: config.checkpoint_every_minutes ago at most, or at
the step at which SIGTERM came. Exit status: 0 done, 2 bad input, 130 interrupted, 143 terminated.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.schema import Config


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = command_line.common_flags(
        "folder for all that the run writes, also gs://… or s3://…; default runs/CONFIG-METHOD-Kshots-seedS"
    )
    command_line.define_protocol(values)
    return values


def run(argv: Sequence[str]) -> None:
    """Reads the command line, then runs the pipeline.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong; if it is the command line or the config, nothing has been written.
    """
    values = define_flags()
    overrides, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    workdir, spec = str(values["workdir"].value or ""), values["config"].value
    problems += command_line.folder_problems("workdir", workdir, may_be_in_bucket=True)
    overrides = command_line.protocol_overrides(values, problems) + overrides
    if not spec:
        problems.append("--config: say which config, such as --config=digits or --config=my_config.py")
        raise command_line.ConfigError(problems)
    config = command_line.read_config(spec, overrides, problems)
    command_line.check_buckets(config)

    # JAX is imported only now, so that --help and mistakes answer at once and touch no device.
    from utilgen_jax import pipeline
    from utilgen_jax.pretraining.on_demand import pretrain_if_missing
    from utilgen_jax.runtime import distributed

    distributed.initialize_distributed()
    with distributed.end_together():
        pretrain_if_missing(config)
        pipeline.run(config, workdir or default_workdir(spec, config))


def default_workdir(spec: str, config: Config) -> str:
    """Names the folder of a run that is given none, and prints it: `runs/digits-joint-2shots-seed0`.

    Args:
        spec: the value of --config.
        config: of the run.
    """
    name, shots = Path(spec.partition(":")[0]).stem, config.data.shots or "all"
    workdir = f"runs/{name}-{config.method}-{shots}shots-seed{config.seed}"
    print(f"workdir: {workdir}", flush=True)
    return workdir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, also the console script `utilgen`, and returns its exit status; argv=None is sys.argv."""
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
