"""What a run leaves for people: its table and its report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utilgen_jax.config.schema import FIELDS, Config, flatten
from utilgen_jax.experiment.flops import spent_flops
from utilgen_jax.methods import METHODS
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.data import Findings, RunData, save, shown_real
from utilgen_jax.report.page import write_report
from utilgen_jax.report.summary import UPDATE_NOTE, accuracy_columns
from utilgen_jax.report.table import format_table
from utilgen_jax.report.words import word_lines

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Accuracy, Experiment, TrainingData

_TITLES = {"real_only": METHODS["real"].title, "vanilla": METHODS["vanilla"].title}


def print_table(summary: dict[str, Any]) -> None:
    """Prints the accuracies of one run."""
    titles = _TITLES | {"final": METHODS[summary["method"]].title}
    columns = accuracy_columns(summary)
    rows = [
        [titles[name], summary["num_real"], 0 if name == "real_only" else summary["num_synthetic"]]
        + [f"{column[name]:.1%}" if name in column else "–" for column in columns.values()]
        for name in summary["accuracy"]
        # A method that is itself a baseline would stand there twice.
        if name != "final" or titles[name] not in _TITLES.values()
    ]
    shots, seed = summary["shots"] or "all", summary["seed"]
    print(f"\n{summary['dataset']}, {shots} labelled images a class, seed {seed}, test accuracy:\n")
    print(format_table(rows, ["training set", "real", "synthetic", *columns]) + "\n")
    if "accuracy_of_update" in summary:
        print(f"{UPDATE_NOTE}: {summary['accuracy_of_update']:.1%}\n")
    if "words" in summary:
        print("\n".join(word_lines(summary["words"])) + "\n")


def report_data(
    experiment: Experiment, accuracy: Mapping[str, Accuracy], data: TrainingData, plain_difficulty: np.ndarray | None
) -> RunData:
    """Collects what the report of a run shows beside its pool; parts of it are stages, which every process runs.

    Args:
        experiment: the run.
        accuracy: by row of the summary.
        data: of the last method.
        plain_difficulty: of images of the generator as it is, where known.
    """
    split, generated, spec = experiment.split, data.pool, experiment.methods[-1].pool
    findings = (spec.findings(experiment) if spec is not None and generated is not None else None) or Findings()
    if findings.real_difficulty is None:
        findings = dataclasses.replace(findings, real_difficulty=experiment.classifiers.real_difficulty())
    if findings.plain_difficulty is None:
        findings = dataclasses.replace(findings, plain_difficulty=plain_difficulty)
    places = experiment.classifiers.image_map(generated)
    num_trainings = sum(1 + (each.synthetic_only is not None) for each in accuracy.values())
    images: dict[str, Any] = {}
    if generated is not None and data.values is not None:
        folder = experiment.pool_folder(generated.spec, generated.round)
        images = {
            "pool": folder.relative_to(experiment.workdir).as_posix(),
            "losses": data.values.losses,
            "map_synthetic": places["synthetic"],
            "map_synthetic_labels": generated.labels[places["synthetic_rows"]],
        }
    return RunData(
        **vars(findings),
        **shown_real(split.real),
        **images,
        test_labels=split.test.labels,
        predicted={row: each.predicted for row, each in accuracy.items() if each.predicted is not None},
        map_real=places["real"],
        map_real_labels=split.real.labels[places["real_rows"]],
        map_explained=places["explained"],
        flops=spent_flops(experiment, generated, num_trainings),
        changed=changed_fields(experiment.config),
        inputs=experiment.inputs,
        command="python -m " + shlex.join(["utilgen_jax.main", *sys.argv[1:]]),
    )


def changed_fields(config: Config) -> list[tuple[str, str, str]]:
    """The fields that differ from the defaults: (field, default, value)."""
    values = flatten(config)
    return [
        (path, repr(field.default), repr(values[path]))
        for path, field in FIELDS.items()
        if values[path] != field.default
    ]


def write_results(workdir: Path, summary: dict[str, Any], data: RunData, pool: Pool | None) -> Path:
    """Writes the report page and what it is made from; returns the page's path.

    Args:
        workdir: the run's folder.
        summary: the contents of `summary.json`.
        data: see `report_data`.
        pool: the synthetic images; None where there are none.
    """
    save(workdir, data)
    return write_report(workdir, summary, data, pool)
