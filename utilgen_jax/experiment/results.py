"""What a run leaves for people: its table and its report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utilgen_jax.config.schema import FIELDS, Config, flatten
from utilgen_jax.experiment.flops import spent_flops
from utilgen_jax.methods import METHODS
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.accuracy import class_changes, confusions, gains
from utilgen_jax.report.data import Findings, RunData, save, shown_real
from utilgen_jax.report.page import write_report
from utilgen_jax.report.summary import UPDATE_NOTE, accuracy_columns
from utilgen_jax.report.table import format_table
from utilgen_jax.report.words import word_lines
from utilgen_jax.runtime.paths import is_in_bucket

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Accuracy, Experiment, TrainingData

_MOST_CHANGES = 3  # that the terminal tells
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


def changes(data: RunData) -> list[str]:
    """What changed most from real images alone to the final classifier, a line each, for the terminal."""
    labels, names = data.test_labels, tuple(data.class_names)
    if labels is None or not {"real_only", "final"} <= set(data.predicted):
        return []
    before, after = data.predicted["real_only"], data.predicted["final"]
    gain = gains(labels, data.predicted, "real_only")["final"]
    if np.array_equal(before, after):
        return []
    classes = class_changes(labels, before, after, names)[:_MOST_CHANGES]
    mistakes = confusions(labels, before, after, names, _MOST_CHANGES)
    return [
        f"over real images alone: {100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]",
        "changed most: " + ", ".join(f"{each.name} {each.before:.1%} -> {each.after:.1%}" for each in classes),
        "mistakes: " + ", ".join(f"{each.name} as {each.taken_for} {each.before} -> {each.after}" for each in mistakes),
        "",
    ]


def next_commands(summary: Mapping[str, Any], workdir: str, argv: Sequence[str]) -> list[str]:
    """The commands that one would want next, a line each; none where the run was not started by `main`.

    Args:
        summary: of the run.
        workdir: the run's folder, which may be in a bucket.
        argv: the command line, its first entry the program.
    """
    words = list(argv[1:])
    if not any(word.startswith("--config") for word in words):
        return []
    own = [word for place, word in enumerate(words) if not _is_workdir(words, place)]
    methods = ",".join(dict.fromkeys(["real", "vanilla", summary["method"]]))
    compare = ["python", "-m", "utilgen_jax.compare", *own, f"--methods={methods}", f"--workdir={workdir}-seeds"]
    lines = [f"next, whether other seeds agree: {shlex.join(compare)}"]
    if summary["num_synthetic"]:
        out = Path(workdir).name if is_in_bucket(workdir) else workdir
        more = ["python", "-m", "utilgen_jax.generate", f"--workdir={workdir}", f"--num={summary['num_synthetic']}"]
        lines.append(f"or more of these images: {shlex.join([*more, f'--out={out}-more'])}")
    return lines


def _is_workdir(words: Sequence[str], place: int) -> bool:
    """Whether a word is --workdir, or its value."""
    return words[place].startswith("--workdir") or (place > 0 and words[place - 1] == "--workdir")


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
