"""The HTML page of a comparison: one self-contained file, in the order in which a person asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.compare.curve import curve_tables, plot_curve, sizes_of, str_accuracy
from utilgen_jax.compare.statistics import Run, method_results, of_size
from utilgen_jax.compare.tables import plot_differences, tables
from utilgen_jax.config.schema import flatten, from_flat
from utilgen_jax.methods import METHODS
from utilgen_jax.report import format_duration, html
from utilgen_jax.runtime.atomic_write import write_text

FILE = "compare.html"
_STAGES = 3  # that are named of a method
_TITLES = {
    "real+synthetic": "Trained on real and synthetic images",
    "synthetic_only": "Trained on synthetic images alone",
}

Columns = Mapping[str, Sequence[Run]]


@dataclasses.dataclass(frozen=True)
class About:
    """How a comparison was made.

    Attributes:
        command: that makes it.
        settings: the config that the runs share, nested mappings.
        missing: a text for each method and number of shots that lacks runs.
    """

    command: str
    settings: Mapping[str, Any]
    missing: Sequence[str]


def write_page(folder: Path, about: About, columns: Columns, methods: Sequence[str]) -> Path:
    """Writes `compare.html`.

    Args:
        folder: of the comparison.
        about: the comparison.
        columns: {what the classifiers are trained on: finished runs}.
        methods: in display order.

    Returns:
        The path.
    """
    runs = next(iter(columns.values()))
    sizes = sizes_of(runs)
    helped = [] if sizes else [_column(name, own, methods) for name, own in columns.items()]
    name, shots = about.settings.get("data", {}).get("name", "comparison"), sorted({run.shots for run in runs})
    seeds = sorted({run.seed for run in runs})
    head = html.facts(
        [
            ("data", name),
            ("methods", len({run.method for run in runs})),
            ("shots per class", ", ".join(map(str, shots))),
            ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
            ("finished runs", len(runs)),
        ]
    )
    sections = [
        ("Did it help?", "".join(helped) if helped else _verdicts(of_size(runs, sizes[-1]), methods)),
        ("With how many images?", _curve(columns, methods) if sizes else ""),
        ("What did it cost?", _costs(runs, methods)),
        ("How do I repeat it?", _repeat(about, runs)),
    ]
    write_text(folder / FILE, html.page(f"{name}: {len({run.method for run in runs})} methods", head, sections))
    return folder / FILE


def _table(title: str, rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Formats a table as HTML, as `report.format_table` does as text; its title is for screen readers."""
    first, *others = headers
    cells = [([escape(str(cell)) for cell in row], "") for row in rows]
    text_columns = 2 if others[0] == "training set" else 1
    shown = [first or "training set", *others]
    return html.table(shown, cells, text_columns=text_columns, label=f"{first or others[0]}: {title}")


def _parts(parts: Sequence[str]) -> str:
    """Tables as they are, and notes between them."""
    return "".join(part if part.startswith("<") else html.note(part) for part in parts)


def _column(name: str, runs: Sequence[Run], methods: Sequence[str]) -> str:
    draw = partial(plot_differences, runs, methods)
    drawn = html.figure(draw, f"{_title(name)}: differences between the methods, as in the tables below", is_wide=True)
    return html.block(
        _title(name), _verdicts(runs, methods) + drawn + _parts(tables(runs, methods, partial(_table, _title(name))))
    )


def _title(column: str) -> str:
    return _TITLES.get(column, column)


def _verdicts(runs: Sequence[Run], methods: Sequence[str]) -> str:
    """The best method at each number of shots, in a sentence."""
    results = method_results(runs, methods)
    lines = []
    for shots in sorted({result.shots for result in results}):
        best = max((result for result in results if result.shots == shots), key=lambda result: result.accuracy)
        gains = [
            f"{gain} points over {name}"
            for name, gain in (("real images alone", best.minus_real), ("plain synthetic images", best.minus_plain))
            if gain is not None
        ]
        title = METHODS[best.method].title.removeprefix("+ ")
        text = f"{html.count(shots, 'shot')}: best is {title}, {str_accuracy(best)} %"
        lines.append(f"<li>{escape(', '.join([text, *gains]))}</li>")
    return f'<ul class="verdicts">{"".join(lines)}</ul>'


def _curve(columns: Columns, methods: Sequence[str]) -> str:
    drawn = html.figure(
        partial(plot_curve, columns, methods),
        "Test accuracy by the number of synthetic images for each real one, as in the tables below",
        is_wide=True,
    )
    return drawn + "".join(
        html.block(_title(name), _parts(curve_tables(runs, methods, partial(_table, _title(name)))))
        for name, runs in columns.items()
    )


def _costs(runs: Sequence[Run], methods: Sequence[str]) -> str:
    """Means over a method's runs."""
    rows: list[html.Row] = []
    longest = max(run.seconds for run in runs)
    for method in methods:
        own = [run for run in runs if run.method == method]
        if not own:
            continue
        stages: dict[str, float] = {}
        for run in own:
            for stage, seconds in run.seconds_by_stage.items():
                stages[stage] = stages.get(stage, 0.0) + seconds / len(own)
        largest = sorted(stages.items(), key=lambda item: -item[1])[:_STAGES]
        seconds = float(np.mean([run.seconds for run in own]))
        rows.append(
            (
                [
                    escape(METHODS[method].title),
                    escape(", ".join(f"{stage} {format_duration(value)}" for stage, value in largest)),
                    f"{np.mean([run.num_synthetic for run in own]):,.0f}",
                    f"{format_duration(seconds)}{html.bar(seconds / longest if longest else 0)}",
                ],
                "",
            )
        )
    headers = ["Training set", "Longest stages", "Synthetic images", "Time of a run"]
    text = html.table(headers, rows, caption="Means over the runs of a method", text_columns=2)
    return text + html.note("Stages that methods share are computed once and count in each of them.")


def _repeat(about: About, runs: Sequence[Run]) -> str:
    missing = "".join(f"<li>{escape(line)}</li>" for line in about.missing)
    fields: list[html.Row] = [
        ([f"<code>{escape(path)}</code>", f"<code>{escape(repr(value))}</code>"], "")
        for path, value in flatten(from_flat(about.settings)).items()
    ]
    own: list[html.Row] = [
        (
            [
                str(run.shots),
                *([str(run.images_per_shot)] if any(each.images_per_shot for each in runs) else []),
                str(run.seed),
                escape(METHODS[run.method].title),
                f"{100 * run.accuracy:.1f} %",
                format_duration(run.seconds),
            ],
            "",
        )
        for run in runs
    ]
    sizes = ["Images a shot"] if any(run.images_per_shot for run in runs) else []
    headers = ["Shots", *sizes, "Seed", "Training set", "Accuracy", "Time"]
    return (
        f"<pre>{escape(about.command)}</pre>"
        + (f"<h3>Missing runs</h3><ul>{missing}</ul>" if missing else "")
        + html.details(f"All {html.count(len(runs), 'run')}", html.table(headers, own, text_columns=3 + len(sizes)))
        + html.details(
            f"The config that they share, {html.count(len(fields), 'field')}",
            html.table(["Field", "Value"], fields, text_columns=2),
        )
    )
