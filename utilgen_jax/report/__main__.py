"""Makes the report of a finished run anew.

  python -m utilgen_jax.report --workdir=runs/digits

It reads what the run left in its folder (summary.json, pool, report/data.npz) and writes report/index.html; neither the
data set nor a checkpoint is read. The page of a comparison is written by `python -m utilgen_jax.compare --norun ...`.
Exit status: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.errors import InputError

_MEMORY = 4 * 2**30  # bytes of images; those of a larger pool are decoded one by one


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of a finished run", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Returns messages about invalid flag values; reads no files."""
    if not settings["workdir"]:
        return ["--workdir: required, e.g. --workdir=runs/digits"]
    return command_line.missing_bucket_problems("workdir", settings["workdir"])


def make_report(workdir: Path) -> Path:
    """Writes the report of a finished run, and returns the page's path.

    Raises:
        InputError: the folder holds no finished run, or one whose files are damaged.
    """
    from utilgen_jax.data.streamed_images import Reading
    from utilgen_jax.pool.storage import read_pool
    from utilgen_jax.report.data import load
    from utilgen_jax.report.page import write_report

    file = workdir / "summary.json"
    if not file.is_file():
        what = "holds a comparison, not a run" if (workdir / "compare.json").is_file() else "holds no finished run"
        raise InputError(f"--workdir: {workdir} {what}: it has no summary.json")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    data = load(workdir)
    reading = Reading(_MEMORY, workers=0)
    pool = read_pool(workdir / data.pool, data.class_names, reading) if data.pool else None
    return write_report(workdir, summary, data, pool)


def run(argv: Sequence[str]) -> None:
    """Reads the command line and writes the report.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid.
    """
    settings = command_line.read_settings(__doc__ or "", define_flags(), argv, check_arguments)
    if settings is None:
        return
    from utilgen_jax.runtime.working_folder import shown, working_folder

    with working_folder(settings["workdir"], claims=False) as workdir:
        print(f"report: {shown(make_report(workdir))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), "the page is as it was")


if __name__ == "__main__":
    sys.exit(main())
