"""Evaluates a trained classifier on the test images of a data set.

  python -m utilgen_jax.evaluate --data=cifar10 --data_path=DATA_DIR --classifier=resnet20 \\
      --weights=resnet20-12fca82f.npz --normalization=imagenet
  python -m utilgen_jax.evaluate --data=imagefolder --data_path=FOLDER --image_size=224 --classifier=resnet50 \\
      --weights=model.safetensors --normalization=imagenet

The weights are a .safetensors or .npz file with torch's names: torchvision's for resnet18 and larger, resnext50,
wide_resnet50 and mobilenet_v2; timm's vit_small_patch16 for vit_s; github.com/akamaster/pytorch_resnet_cifar10's for
resnet20, 32 and 56. Batch norm uses the statistics of the file. The weights must have the labels of the data set. The
centre square of an image is scaled to --image_size; published accuracies may use a smaller crop.

It prints the accuracy with Wilson's 95 % interval; the last line on standard output is a JSON object. Exit status:
0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from utilgen_jax.classifier.config import CLASSIFIERS, NORMALIZATIONS
from utilgen_jax.config import command_line
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.data.flags import define_data_flags, load_flagged_source, named_as_flags
from utilgen_jax.errors import InputError

_WIDTH = 32  # width of small_cnn and mlp


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()
    define_data_flags(values)
    flags.DEFINE_string("classifier", "resnet20", f"network: {', '.join(CLASSIFIERS)}", flag_values=values)
    flags.DEFINE_string("weights", None, "file of weights", flag_values=values)
    normalization = "normalisation of channels: none ([-1, 1]), or imagenet (mean and deviation, as in torchvision)"
    flags.DEFINE_string("normalization", "none", normalization, flag_values=values)
    flags.DEFINE_integer("batch_size", 100, "images per batch", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("help", False, "show this help and exit", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any]) -> list[str]:
    """Returns messages about invalid flag values; reads no files."""
    examples = {"data": "cifar10", "weights": "resnet20-12fca82f.npz"}
    problems = [f"--{name}: required, e.g. --{name}={text}" for name, text in examples.items() if not settings[name]]
    for name, valid in {"classifier": CLASSIFIERS, "normalization": NORMALIZATIONS}.items():
        problems += choice_problems(name, settings[name], valid)
    if settings["channels"] not in (1, 3):
        problems.append(f"--channels={settings['channels']}: is 1 or 3")
    elif settings["normalization"] == "imagenet" and settings["channels"] != 3:
        problems.append("--normalization=imagenet: needs --channels=3")
    return problems


def evaluate(settings: dict[str, Any]) -> dict[str, Any]:
    """Evaluates the classifier.

    Args:
        settings: flag values by name.

    Returns:
        "accuracy", "low" and "high" (Wilson's 95 % interval) in [0, 1], "num_correct" and "num_test"; JSON-ready.

    Raises:
        InputError: the data or the weights cannot be read, the data have no test split, or the weights do not match.
    """
    import jax
    import jax.numpy as jnp
    from scipy.stats import binomtest

    from utilgen_jax.checkpoints.classifier_files import load_classifier_variables, open_classifier_file
    from utilgen_jax.classifier.model import Classifier
    from utilgen_jax.classifier.train import predict_logits
    from utilgen_jax.models.classifiers import build_classifier
    from utilgen_jax.runtime.sharding import replicate

    size = settings["image_size"]
    with named_as_flags():
        test = load_flagged_source(settings).test
        if test is None:
            raise InputError(f"--data={settings['data']}: has no test split")
        file = open_classifier_file(settings["weights"])
        module: Any = build_classifier(settings["classifier"], len(test.class_names), _WIDTH, size, norm=file.norm)
    images = jax.ShapeDtypeStruct((1, size, size, settings["channels"]), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    variables, _ = load_classifier_variables(file, expected)
    classifier = replicate(Classifier(module, settings["normalization"], frozen=variables))
    num_correct = 0
    for start in range(0, len(test.labels), settings["batch_size"]):
        chosen = np.arange(start, min(start + settings["batch_size"], len(test.labels)))
        logits = predict_logits(classifier, {}, test.read(chosen), settings["batch_size"])
        num_correct += int((logits.argmax(-1) == test.labels[chosen]).sum())
    interval = binomtest(num_correct, len(test.labels)).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": num_correct / len(test.labels),
        "low": float(interval.low),
        "high": float(interval.high),
        "num_correct": num_correct,
        "num_test": len(test.labels),
    }


def run(argv: Sequence[str]) -> None:
    """Parses the command line, evaluates, and prints.

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
    result = evaluate(settings)
    print(
        f"{settings['classifier']}, {settings['weights']}: {result['accuracy']:.1%} "
        f"[{result['low']:.1%}, {result['high']:.1%}] of {result['num_test']} test images of {settings['data']}"
    )
    print(json.dumps({**settings, **result}, allow_nan=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
