"""Pretrains a small Stable Diffusion from scratch, on printed digits or on your own images.

  python -m utilgen_jax.pretraining --out=runs/glyphs
  python -m utilgen_jax.pretraining --config=configs/pneumoniamnist.py --config.data.path=FILE.npz --out=runs/lungs

It makes the corpus, trains a tiny CLIP, an autoencoder and a UNet in turn, and writes a Stable Diffusion unCLIP
checkpoint for 32x32 pixels in diffusers' folder format. The result is deterministic in the seed. The same command
resumes an interrupted run: finished components are read from the folder, the current one from its last checkpoint.

With --config the corpus is a share of the training images of the config's data set, captioned by class and tones. Their
ids are written to OUT/training_images.txt; pass this file to the experiment as --config.data.exclude, so that it does
not use them as few-shot images. Exit status: 0 done, 2 bad input, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.pretraining.domain import glyph_domain
from utilgen_jax.pretraining.images import image_domain
from utilgen_jax.pretraining.pretrain import pretrain
from utilgen_jax.report.progress import format_duration
from utilgen_jax.runtime.folder_lock import locked_folder


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = command_line.common_flags(None)
    flags.DEFINE_string("out", "runs/glyphs", "checkpoint folder to write", flag_values=values)
    flags.DEFINE_float("share", 0.5, "fraction of --config's training images to use", 0.01, 0.99, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of corpus, initial weights and batches", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "shrink", 1, "divisor of corpus size and steps, for a trial", lower_bound=1, flag_values=values
    )
    return values


def run(argv: Sequence[str]) -> None:
    """Parses the command line and writes the checkpoint.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid; nothing has been written.
    """
    values = define_flags()
    overrides, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    settings = values.flag_values_dict()
    problems += command_line.folder_problems("out", settings["out"])
    out, seed, shrink = Path(settings["out"]), settings["seed"], settings["shrink"]
    if not settings["config"]:
        if overrides:
            problems.append("--config: required with overrides of its fields")
        if problems:
            raise command_line.ConfigError(problems)
        domain, training_ids = glyph_domain(seed, shrink), None
    else:
        config = command_line.read_config(settings["config"], overrides, problems)
        domain, training_ids = image_domain(config, settings["share"], seed)
    start = time.monotonic()
    with locked_folder(out):
        pretrain(out, domain, seed, shrink, training_ids)
    print(f"written: {out} ({format_duration(time.monotonic() - start)}).")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
