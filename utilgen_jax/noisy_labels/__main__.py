"""Trains on noisy labels with and without learnt sample weights, and evaluates the weights.

  python -m utilgen_jax.noisy_labels --data=cifar10 --data_path=DATA_DIR --noise=0.4 --workdir=runs/noisy
  python -m utilgen_jax.noisy_labels --data=npz --data_path=mine.npz --noise=0 --workdir=runs/mine
  python -m utilgen_jax.noisy_labels --data=cifar10 --data_path=DATA_DIR --noise=0.2 --augment=randaugment \\
      --weightings=uniform,saflex --workdir=runs/saflex

A fraction --noise of the training labels is redrawn uniformly from all classes, as in Meta-Weight-Net's public code
(Shu et al. 2019). A redrawn label can be right: with ten classes and --noise=0.4, 36 % of the labels are wrong.
--num_validation training images are held out with their original labels; the weightings learn from them which labels
to trust. For a fair comparison, `uniform` also trains on them. All weightings train the same classifier from the same
initial weights:

  uniform          equal weights
  loss_network     weight as a learnt function of the loss (Meta-Weight-Net, UtilGen)
  feature_network  weight as a learnt function of loss, margin, entropy and class
  saflex           weight and soft label from the influence on the validation loss (SAFLEX, Ding et al. 2024)

It prints the test accuracy and its difference to uniform's, with a 95 % interval paired over the test images. It also
prints the area under the ROC curve (AUC) for detecting wrong labels, on up to 2,000 training images, by three scores:
the weight, the soft label's probability of the given label, and the loss. The last line on standard output is a JSON
object. The folder gets config.json, metrics.jsonl, summary.json and weights.png. The same command resumes where the
training was last saved, a minute before it was cut off at most, and may add weightings. Exit status: 0 done, 2 bad
input, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.data.flags import define_data_flags


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def text(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def whole(name: str, default: int, help: str, lower: int) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lower, flag_values=values)

    def number(name: str, default: float, help: str, lower: float, upper: float | None = None) -> None:
        flags.DEFINE_float(name, default, help, lower_bound=lower, upper_bound=upper, flag_values=values)

    define_data_flags(values)
    number("noise", 0.4, "fraction of the training labels to redraw; 0 for data that are noisy already", 0.0, 1.0)
    whole("num_train", 0, "number of training images; 0: all but the validation images", 0)
    whole("num_validation", 1000, "number of validation images, held out with their original labels", 1)
    text("classifier", "resnet20", "small_cnn, or a residual network such as resnet20, resnet56, resnet18, resnet50")
    flags.DEFINE_list("weightings", ["uniform", "loss_network"], "weightings to compare", flag_values=values)
    text("augment", "flip_crop", "augmentation of training images: none, flip_crop, or randaugment (after flip_crop)")
    whole("steps", 20000, "optimiser steps", 1)
    whole("plain_steps", 1000, "number of first steps with equal weights, in which no weighting is learnt", 0)
    whole("batch_size", 64, "images per step", 2)
    whole("validation_batch_size", 64, "validation images per step; several hundred are recommended for saflex", 1)
    whole("outer_every", 5, "steps between two updates of the weight network", 1)
    number("learning_rate", 0.1, "peak learning rate of SGD with momentum", 0.0)
    number("weight_decay", 5e-4, "weight decay of the classifier", 0.0)
    number("outer_learning_rate", 1e-3, "learning rate of Adam for the weight network", 0.0)
    number("label_probability", 0.9, "saflex: what the given label keeps at zero influence", 1e-3, 1 - 1e-3)
    number("temperature", 1.0, "saflex: temperature of the soft label; smaller is harder", 1e-3)
    whole("seed", 0, "random seed of noise, split, initial weights and batches", 0)
    text("workdir", None, "folder for the results; created if missing")
    flags.DEFINE_boolean("help", False, "show this help and exit", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any]) -> list[str]:
    """Returns messages about invalid flag values; does not read the data."""
    from utilgen_jax.data.augment.augmentation import AUGMENTATIONS
    from utilgen_jax.models.classifiers import CLASSIFIERS
    from utilgen_jax.noisy_labels.train import WEIGHTINGS

    problems = []
    examples = {"data": "cifar10", "workdir": "runs/noisy"}
    problems += [f"--{name}: required, e.g. --{name}={text}" for name, text in examples.items() if not settings[name]]
    choices = {"classifier": CLASSIFIERS, "augment": AUGMENTATIONS, "weightings": WEIGHTINGS}
    for name, valid in choices.items():
        problems += choice_problems(name, settings[name], valid)
    if not settings["weightings"]:
        problems.append(f"--weightings: name at least one of {', '.join(WEIGHTINGS)}")
    if settings["plain_steps"] >= settings["steps"]:
        problems.append(f"--plain_steps={settings['plain_steps']}: leaves no step of --steps={settings['steps']}")
    if settings["channels"] not in (1, 3):
        problems.append(f"--channels={settings['channels']}: is 1 or 3")
    if 0 < settings["num_train"] < settings["batch_size"]:
        problems.append(
            f"--num_train={settings['num_train']}: is less than a batch, --batch_size={settings['batch_size']}"
        )
    return problems + command_line.folder_problems("workdir", settings["workdir"])


def run(argv: Sequence[str]) -> None:
    """Parses the command line, trains what is not yet trained, and reports.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid.
    """
    settings = command_line.read_settings(
        __doc__ or "", define_flags(), argv, lambda settings, _: check_arguments(settings)
    )
    if settings is None:
        return

    # JAX's devices are touched only from here on.
    from utilgen_jax.noisy_labels.report import run_experiment

    table, results = run_experiment(settings, Path(settings["workdir"]))
    print(f"\n{table}\n")
    print(json.dumps(results, allow_nan=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "the same command resumes where the training was last saved, a minute ago at most"
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())
