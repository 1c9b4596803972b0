"""More images from what a finished run has trained, as a data set for other tools.

  python -m utilgen_jax.generate --workdir=runs/digits --num=5000 --out=digits_5000
  python -m utilgen_jax.generate --workdir=runs/mine --num=100000 --format=webdataset --shard=0/8 --out=mine_100k
  python -m utilgen_jax.generate --workdir=runs/mine --class_counts=daisy:10,tulip:20 --format=parquet --out=flowers

The images are of the run's method, by its adapter, prompts, class tokens, difficulties and noises; each has a weight,
and a soft label where the run's valuation gives some. They follow from the run, --seed and the numbers of images, in
whatever format or shards they come. --num images are shared evenly by the classes.

--format: imagefolder, for torchvision's ImageFolder and datasets; webdataset; parquet, for datasets; tfds, for
tensorflow-datasets. README.md in --out is a data card, with the lines that read the set and train on it.

A command that was cut off continues with the same images. With --shard=i/n, n commands on as many machines that share
the folder make a part each; the one that ends last closes the set. Exit status: 0 done, 2 bad input, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.generate.formats import FORMATS
from utilgen_jax.runtime.paths import is_in_bucket


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def number(name: str, default: int, help: str, minimum: int) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=minimum, flag_values=values)

    flags.DEFINE_string("workdir", None, "folder of a finished run of `main`", flag_values=values)
    flags.DEFINE_string("out", None, "folder for the data set; made if missing", flag_values=values)
    number("num", 0, "images in all, shared evenly by the classes", 0)
    flags.DEFINE_list(
        "class_counts", [], "instead, images of each class, such as daisy:10,tulip:20", flag_values=values
    )
    flags.DEFINE_string("format", "imagefolder", f"of the data set: {', '.join(FORMATS)}", flag_values=values)
    number("seed", 0, "of these images; another one gives others", 0)
    flags.DEFINE_string("shard", "0/1", "i/n: this command makes part i of n, from 0", flag_values=values)
    number("images_per_file", 0, "images in a file of webdataset, parquet and tfds; 0: up to 512", 0)
    number("batch_size", 0, "images that are generated at once; 0: as in the run", 0)
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Lists what is wrong with the command line, as far as that can be told without opening a file.

    Args:
        settings: each flag's value.
        given: names of the flags that are on the command line.
    """
    examples = {"workdir": "runs/digits", "out": "digits_5000"}
    problems = [f"--{name}: required, such as --{name}={text}" for name, text in examples.items() if not settings[name]]
    problems += choice_problems("format", settings["format"], FORMATS)
    if bool(settings["num"]) == bool(settings["class_counts"]):
        problems.append("--num or --class_counts: give one of them, such as --num=5000")
    for text in settings["class_counts"]:
        if not re.fullmatch(r".+:\d+", text.strip()):
            problems.append(f"--class_counts: {text!r} should be such as daisy:10")
    shard = re.fullmatch(r"(\d+)/(\d+)", settings["shard"])
    if shard is None or int(shard[1]) >= int(shard[2]):
        problems.append(f"--shard={settings['shard']}: should be i/n with i from 0 to n - 1, such as --shard=0/8")
    workdir = settings["workdir"]
    if workdir and is_in_bucket(workdir):
        problems += command_line.missing_bucket_problems("workdir", workdir)
    elif workdir:
        problems += run_problems(Path(workdir))
    return problems + command_line.folder_problems("out", settings["out"])


def run_problems(workdir: Path) -> list[str]:
    """Says why a folder has no finished run."""
    if not (workdir / "config.json").is_file():
        return [f"--workdir: {workdir} is no folder of a run; it has no config.json"]
    if not (workdir / "summary.json").is_file():
        return [f"--workdir: the run in {workdir} is not finished; run its command again first"]
    return []


def run(argv: Sequence[str]) -> None:
    """Reads the command line, generates, and writes the data set.

    Args:
        argv: the command line, its first entry the program.

    Raises:
        InputError: something the user gave is wrong; nothing has been written.
    """
    settings = command_line.read_settings(__doc__ or "", define_flags(), argv, check_arguments)
    if settings is None:
        return

    # JAX is imported only now, so that --help and mistakes answer at once and touch no device.
    from utilgen_jax.generate.write import generate
    from utilgen_jax.runtime import distributed
    from utilgen_jax.runtime.working_folder import working_folder

    distributed.initialize_distributed()
    with distributed.end_together(), working_folder(settings["workdir"], claims=False) as workdir:
        if problems := run_problems(workdir):
            raise command_line.ConfigError(problems)
        print(generate(settings, workdir))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "the same command continues with the images that are missing"
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())
