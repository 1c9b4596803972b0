"""Makes the small generator of one's own images that a config wants, where it is not there yet."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax

from utilgen_jax.config.schema import Config
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.layout import TRAINING_IMAGES, is_whole
from utilgen_jax.runtime.folder_lock import locked_folder

SHARE, SEED = 0.5, 0  # of `python -m utilgen_jax.pretraining`
_TIME = "about 50 minutes on 2 processor cores"


def pretrain_if_missing(config: Config, shrink: int = 1) -> None:
    """Pretrains the config's generator, if it is one of the data set's own images and not whole.

    It is one if `data.exclude` is the list of images that such a generator has in its folder, as in the variant
    `pretrained`. A person at a terminal is asked first.

    Args:
        config: checked.
        shrink: divisor of the number of steps, for a trial.

    Raises:
        InputError: the data set cannot be read, the answer was no, or there are several processes.
    """
    out = Path(config.generator.checkpoint)
    if Path(config.data.exclude) != out / TRAINING_IMAGES or is_whole(out):
        return
    # Imported here: nearly all runs have their checkpoint.
    from utilgen_jax.pretraining.images import image_domain
    from utilgen_jax.pretraining.pretrain import pretrain

    command = f"python -m utilgen_jax.pretraining --config=... --out={out}"
    if jax.process_count() > 1:
        raise InputError(f"config.generator.checkpoint={out} is not there yet; make it in one process: {command}")
    print(f"{out} is not there, or not whole: making it of half of the train images takes {_TIME}", file=sys.stderr)
    print("Ctrl-C stops it; the same command continues", file=sys.stderr, flush=True)
    if sys.stdin.isatty() and input("go on? [Y/n] ").strip().lower() not in ("", "y", "yes"):
        raise InputError(f"config.generator.checkpoint={out} is not there; later: {command}")
    data = dataclasses.replace(config.data, exclude="")
    domain, training_ids = image_domain(dataclasses.replace(config, data=data), SHARE, SEED)
    with locked_folder(out):
        pretrain(out, domain, SEED, shrink, training_ids)
