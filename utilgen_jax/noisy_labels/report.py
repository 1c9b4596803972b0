"""The experiment of `python -m utilgen_jax.noisy_labels`: noisy data, a stage per weighting, and the report."""

from __future__ import annotations

import json
from collections import ChainMap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from utilgen_jax import report
from utilgen_jax.data.fingerprint import Fingerprints
from utilgen_jax.data.flags import load_flagged_source, named_as_flags
from utilgen_jax.data.image_source import ImageSource
from utilgen_jax.data.label_noise import add_label_noise
from utilgen_jax.data.splits import LabelledImages, stratified_order
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.inputs import note_inputs
from utilgen_jax.experiment.logging import log_stage
from utilgen_jax.experiment.stages import StageCache
from utilgen_jax.experiment.workdir import versions, write_summary
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.noisy_labels.train import NoisyData, NoisyTrainingConfig, train_and_evaluate
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.folder_lock import check_unlocked, locked_folder
from utilgen_jax.runtime.paths import normalized
from utilgen_jax.runtime.state_folder import Saving
from utilgen_jax.runtime.training_loop import TrainingLoop

_WIDTH = 32  # width of small_cnn and mlp
_LOG_EVERY = 50
_HEADERS = ("weighting", "test accuracy, %", "minus uniform", "AUC: weight", "soft label", "loss", "seconds")


def run_experiment(settings: dict[str, Any], workdir: Path) -> tuple[str, dict[str, Any]]:
    """Trains the requested weightings that are not done yet, and writes `summary.json` and `weights.png`.

    Args:
        settings: flag values by name.
        workdir: folder of the run; created if missing.

    Returns:
        A formatted table, and the results by name, JSON-ready.

    Raises:
        InputError: the data cannot be read or are too few, or the folder holds a run with other settings.
    """
    check_unlocked(workdir)
    with named_as_flags():
        data = read_data(settings)
        module = build_classifier(settings["classifier"], data.num_classes, _WIDTH, settings["image_size"])
    with locked_folder(workdir):
        return _run(settings, workdir, data, module)


def _run(settings: dict[str, Any], workdir: Path, data: NoisyData, module: Any) -> tuple[str, dict[str, Any]]:
    images = {"training": data.train, "validation": data.validation, "test": data.test}
    inputs = [each.fingerprints(kind) for kind, each in images.items()]
    _open(workdir, settings, dict(ChainMap(*inputs)))
    config = NoisyTrainingConfig(**{name: settings[name] for name in NoisyTrainingConfig.__dataclass_fields__})
    stages = StageCache(workdir / "stages", Saving(identity=versions()))
    results = {}
    with report.MetricsWriter(workdir) as metrics:
        for name in dict.fromkeys(settings["weightings"]):
            training = partial(_train, metrics, stages, module, name, config, data)
            results[name] = stages.run(name, dict, training)

    metrics_by_weighting = [
        _evaluate(name, result, results.get("uniform"), stages.seconds[name]) for name, result in results.items()
    ]
    summary = {
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_test": len(data.test),
        "share_wrong": round(float(data.is_wrong.mean()), 4),
        "results": metrics_by_weighting,
    }
    write_summary(workdir, {"settings": settings, **summary, "versions": versions()})
    report.plot_auc(
        {name: result["weight"] for name, result in results.items()},
        {name: result["is_wrong"] for name, result in results.items()},
        "Weight",
        workdir / "weights.png",
    )
    return report.format_table([_cells(metrics) for metrics in metrics_by_weighting], _HEADERS), summary


def _train(
    metrics: report.MetricsWriter,
    stages: StageCache,
    module: Any,
    name: str,
    config: NoisyTrainingConfig,
    data: NoisyData,
) -> dict[str, np.ndarray]:
    with log_stage(metrics, name, config.steps, _LOG_EVERY) as on_step:
        return train_and_evaluate(module, name, config, data, TrainingLoop(on_step, stages.saved))


def read_data(settings: dict[str, Any]) -> NoisyData:
    """Reads the images, holds out the validation images, and adds label noise.

    Args:
        settings: flag values by name.

    Raises:
        InputError: the data cannot be read, are too few, or have no test split.
    """
    sources = load_flagged_source(settings)
    if sources.test is None:
        raise InputError(f"{sources.train.name} has no test split to compare the weightings on")
    num_validation, num_train = settings["num_validation"], settings["num_train"]
    available = len(sources.train.labels) - num_validation
    least = num_train or settings["batch_size"]
    if available < least:
        raise InputError(
            f"{sources.train.name} has {len(sources.train.labels)} training images: too few for --num_validation="
            f"{num_validation} and {least} to train on (--num_train, or a batch)"
        )
    order = stratified_order(sources.train.labels, settings["seed"])
    train = _read(sources.train, np.sort(order[num_validation:][: num_train or None]))
    noisy = add_label_noise(train.labels, len(train.class_names), settings["noise"], settings["seed"])
    return NoisyData(
        train=LabelledImages(train.images, noisy, train.ids, train.class_names),
        is_wrong=noisy != train.labels,
        validation=_read(sources.train, np.sort(order[:num_validation])),
        test=_read(sources.test, np.arange(len(sources.test.labels))),
    )


def auc(scores: np.ndarray, is_wrong: np.ndarray) -> float | None:
    """Returns the area under the ROC curve of scores that are high for right labels.

    Args:
        scores: float [M].
        is_wrong: whether the label is wrong, bool [M].

    Returns:
        The probability that an image with a right label scores higher than one with a wrong label, ties counting
        half. None if all labels are right or all wrong, or if all scores are equal.
    """
    if is_wrong.all() or not is_wrong.any() or np.ptp(scores) == 0:
        return None
    return float(roc_auc_score(~is_wrong, scores))


def _evaluate(
    name: str, result: dict[str, np.ndarray], uniform: dict[str, np.ndarray] | None, seconds: float
) -> dict[str, Any]:
    metrics = {
        "weighting": name,
        "accuracy": float(result["correct"].mean()),
        "auc_weight": auc(result["weight"], result["is_wrong"]),
        "auc_soft_label": auc(result["label_mass"], result["is_wrong"]),
        "auc_loss": auc(-result["loss"], result["is_wrong"]),
        "seconds": seconds,
    }
    if uniform is not None and name != "uniform":
        metrics["minus_uniform"] = report.paired_difference(100.0 * result["correct"], 100.0 * uniform["correct"])
    return metrics


def _cells(metrics: dict[str, Any]) -> list[str]:
    difference = metrics.get("minus_uniform")
    aucs = [metrics[key] for key in ("auc_weight", "auc_soft_label", "auc_loss")]
    return [
        metrics["weighting"],
        f"{100 * metrics['accuracy']:.1f}",
        "-" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference),
        *("-" if value is None else f"{value:.3f}" for value in aucs),
        f"{metrics['seconds']:.0f}",
    ]


def _open(workdir: Path, settings: dict[str, Any], inputs: Fingerprints) -> None:
    """Creates the folder and writes the settings, or checks that an existing run has the same settings and images.

    Raises:
        InputError: the run has other settings or images, or its config.json cannot be read.
    """
    file = workdir / "config.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            # Weightings may be added, and a folder may have been moved.
            fixed = [name for name in settings if name not in ("weightings", "workdir", "data_path")]
            differing = [
                f"--{name}: {before[name]} before, {settings[name]} now"
                for name in fixed
                if before[name] != settings[name]
            ]
            if normalized(before["data_path"]) != normalized(settings["data_path"]):
                differing.append(f"--data_path: {before['data_path']} before, {settings['data_path']} now")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not the settings of this command ({error!r}); choose another folder") from error
        if differing:
            raise InputError("\n  ".join([f"--workdir: {workdir} holds a run with other settings:", *differing]))
    note_inputs(workdir, inputs)
    write_text(file, json.dumps(settings, indent=2) + "\n")


def _read(source: ImageSource, indices: np.ndarray) -> LabelledImages:
    return LabelledImages(
        source.read(indices), source.labels[indices], tuple(source.ids[index] for index in indices), source.class_names
    )
