"""Sections of a run's report: did it help, what did the generator learn, what did it cost, how do I repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.pool.storage import Pool
from utilgen_jax.report import html, plots, words
from utilgen_jax.report.accuracy import Interval, class_changes, confusions, gains, intervals
from utilgen_jax.report.data import RunData
from utilgen_jax.report.progress import format_duration
from utilgen_jax.report.summary import ACCURACY_LABELS, UPDATE_NOTE, accuracy_columns, rows_in_order

_MOST_CLASSES, _MOST_CONFUSIONS, _MOST_STAGES = 12, 8, 10  # that are shown at once
# Sheets and curves that stages of the run have drawn: file below report/ -> title, what it shows.
_SHEETS = {
    "difficulty_sweep.png": (
        "Requested difficulty",
        "Images of each class (rows) at rising difficulty s (columns). A row shares its initial noise.",
    ),
    "hard_factors.png": (
        "Hard factors",
        "Images from the difficulty token of each class alone, without a prompt, at high difficulty.",
    ),
}


def did_it_help(summary: Mapping[str, Any], data: RunData) -> str:
    """Accuracies by training set, and for each class what changed."""
    labels, predicted = data.test_labels, data.predicted
    known = intervals(labels, predicted) if labels is not None else {}
    points = gains(labels, predicted, "real_only") if labels is not None else {}
    text = _verdict(summary, points.get("final")) + _accuracies(summary, known, points)
    if labels is None or not {"real_only", "final"} <= set(predicted) or summary["method"] == "real":
        return text
    before, after, names = predicted["real_only"], predicted["final"], tuple(data.class_names)
    return text + html.blocks(
        html.block("Class by class", _classes(labels, before, after, names)),
        html.block("What changed most among the mistakes", _confusions(labels, before, after, names)),
    )


def _verdict(summary: Mapping[str, Any], gain: Interval | None) -> str:
    if summary["method"] == "real" or gain is None:
        return ""
    found = "Yes" if gain.low > 0 else "No" if gain.high < 0 else "Not clearly"
    return (
        f'<p class="verdict"><b>{found}: {100 * gain.mean:+.1f} points</b> over real images alone '
        f'<span class="interval">{_points(gain)}</span></p>'
    )


def _points(interval: Interval) -> str:
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _accuracies(summary: Mapping[str, Any], known: Mapping[str, Interval], points: Mapping[str, Interval]) -> str:
    accuracy, columns = summary["accuracy"], accuracy_columns(summary)
    rows: list[html.Row] = []
    for row in rows_in_order(summary):
        cells = [escape(ACCURACY_LABELS.get(row, row) + (f" ({summary['method']})" if row == "final" else ""))]
        for column in columns.values():
            if row not in column:
                cells.append("–")
                continue
            # The interval is of the classifier that the summary calls by this row.
            own = known.get(row) if column[row] == accuracy[row] else None
            about = f" [{100 * own.low:.1f}, {100 * own.high:.1f}]" if own else ""
            cells.append(
                f'<b>{100 * column[row]:.1f} %</b><span class="interval">{about}</span>{html.bar(column[row])}'
            )
        if row == "real_only" or "real_only" not in accuracy:
            cells.append("–")
        else:
            about = f' <span class="interval">{_points(points[row])}</span>' if row in points else ""
            cells.append(f"{100 * (accuracy[row] - accuracy['real_only']):+.1f}{about}")
        plain = row == "real_only" or summary["method"] == "real"
        cells += [f"{summary['num_real']:,}", "0" if plain else f"{summary['num_synthetic']:,}"]
        rows.append((cells, "accent" if row == "final" else ""))
    titles = [f"{title[0].upper()}{title[1:]}" for title in columns]
    headers = ["Trained on", *titles, "Points over real only", "Real", "Synthetic"]
    text = html.table(headers, rows, caption="Test accuracy by training set")
    if known:
        text += html.note(
            "In brackets: 95 % intervals over resampled test images, differences on the same ones. They say "
            "how far the test images decide, not how far another seed would agree."
        )
    if "accuracy_of_update" in summary:
        text += html.note(f"{UPDATE_NOTE}: {100 * summary['accuracy_of_update']:.1f} %")
    return text


def _classes(labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: tuple[str, ...]) -> str:
    rows: list[html.Row] = [
        (
            [
                escape(change.name),
                f"{change.number:,}",
                f"{100 * change.before:.1f} %",
                f"{100 * change.after:.1f} %",
                f"<b>{100 * (change.after - change.before):+.1f}</b>",
            ],
            "",
        )
        for change in class_changes(labels, before, after, names)
    ]
    headers = ["Class", "Test images", "Real only", "Final", "Points"]
    text = html.table(headers, rows[:_MOST_CLASSES], caption="Accuracy on each class, the largest change first")
    if len(rows) > _MOST_CLASSES:
        text += html.details(
            f"The other {len(rows) - _MOST_CLASSES} classes", html.table(headers, rows[_MOST_CLASSES:])
        )
    return text


def _confusions(labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: tuple[str, ...]) -> str:
    rows: list[html.Row] = [
        (
            [
                escape(found.name),
                escape(found.taken_for),
                f"{found.before:,}",
                f"{found.after:,}",
                f"<b>{found.after - found.before:+,}</b>",
            ],
            "",
        )
        for found in confusions(labels, before, after, names, _MOST_CONFUSIONS)
    ]
    if not rows:
        return html.note("Both classifiers make the same mistakes.")
    headers = ["Test images of", "taken for", "Real only", "Final", "Images"]
    return html.table(headers, rows, caption="Numbers of test images", text_columns=2)


def what_it_learnt(workdir: Path, summary: Mapping[str, Any], data: RunData, pool: Pool | None) -> str:
    """Difficulty, attributes, weights and the gate's verdict, as far as the run has them."""
    if pool is None:
        return ""
    folder = workdir / "report"
    parts = [
        _gate(data),
        html.block("Difficulty", _density(data, pool)),
        _requested(data, pool),
        _weight_curve(data, pool),
    ]
    parts += [
        html.block(title, html.note(about) + html.image(folder / name, title))
        for name, (title, about) in _SHEETS.items()
        if (folder / name).is_file()
    ]
    parts += [
        html.block(title, html.image(file, title))
        for file in sorted(folder.glob("weight_curve_*.png"))
        for title in [f"Weight by loss: {file.stem.removeprefix('weight_curve_').replace('_', ', round ')}"]
    ]
    parts += [_attributes(data), _words(summary)]
    return html.blocks(*parts)


def _gate(data: RunData) -> str:
    if data.gate_gains is None:
        return ""
    mean = float(np.mean(data.gate_gains))
    error = float(np.std(data.gate_gains, ddof=1) / np.sqrt(len(data.gate_gains)))
    verdict = "The adapter made this pool." if mean > error else "The generator was used as it is."
    text = (
        f"Classifiers that learnt from the adapter's images had a loss {abs(mean):.3f} ± {error:.3f} "
        f"{'lower' if mean > 0 else 'higher'} on {html.count(len(data.gate_gains), 'held-out real image')} than those "
        f"that learnt from plain ones. {verdict}"
    )
    return html.block("The gate", f"<p>{escape(text)}</p>")


def _density(data: RunData, pool: Pool) -> str:
    groups = {"real": data.real_difficulty, "plain synthetic": data.plain_difficulty}
    measured = _column(pool, "difficulty")
    if measured is not None and data.plain_difficulty is not None and np.array_equal(measured, data.plain_difficulty):
        groups["plain synthetic, which is this pool"] = groups.pop("plain synthetic")
    elif measured is not None:
        groups["this pool"] = measured
    known = {title: values for title, values in groups.items() if values is not None}
    if not known:
        return ""
    means = ", ".join(f"{title} {np.mean(values):.2f}" for title, values in known.items())
    about = (
        f"1 - p(class) under a classifier of the real images: 0 is easy, 1 is taken for another class. Means: {means}."
    )
    return html.note(about) + html.figure(partial(plots.plot_difficulty, known), f"Densities of difficulty. {about}")


def _requested(data: RunData, pool: Pool) -> str:
    requested, measured = _column(pool, "requested_difficulty"), _column(pool, "difficulty")
    text = ""
    if requested is not None and measured is not None:
        spread = min(np.std(requested), np.std(measured)) > 1e-6
        about = (
            f"Correlation {np.corrcoef(requested, measured)[0, 1]:+.2f}." if spread else "All are asked for the same."
        )
        draw = partial(plots.plot_requested_difficulty, requested, measured)
        text = html.note(about) + html.figure(draw, f"Measured against requested difficulty. {about}")
    elif data.requested_difficulty is not None:
        text = html.note("Learnt, but not used: the gate kept the generator as it is.")
    if data.requested_difficulty is not None:
        rows: list[html.Row] = [
            ([escape(name), f"{value:.2f}{html.bar(float(value))}"], "")
            for name, value in zip(data.class_names, data.requested_difficulty, strict=True)
        ]
        text += html.details("The difficulty that was learnt for each class", html.table(["Class", "Asked"], rows))
    return html.block("Difficulty asked for, and measured", text)


def _weight_curve(data: RunData, pool: Pool) -> str:
    weights = _column(pool, "weight")
    if data.losses is None or weights is None:
        return ""
    about = (
        "Weight of each synthetic image by its loss. A flat curve says that the weight network found no difference "
        "between the images."
    )
    draw = partial(plots.plot_weight_curve, data.losses, weights)
    return html.block("Weight by loss", html.note(about) + html.figure(draw, about))


def _attributes(data: RunData) -> str:
    if not data.attributes:
        return ""
    named = [(value or f"none of {group}", before, after) for group, value, before, after in data.attributes]
    rows: list[html.Row] = [
        (
            [
                escape(value),
                f"{100 * before:.1f} %{html.bar(before)}",
                f"<b>{100 * after:.1f} %</b>{html.bar(after)}",
                f"{100 * (after - before):+.1f}",
            ],
            "",
        )
        for value, before, after in sorted(named, key=lambda row: -abs(row[2] - row[1]))
    ]
    headers = ["Attribute", "Before", "After", "Points"]
    text = html.table(headers, rows[:_MOST_CLASSES], caption="Probability in a prompt, the largest change first")
    if len(rows) > _MOST_CLASSES:
        text += html.details(f"The other {len(rows) - _MOST_CLASSES}", html.table(headers, rows[_MOST_CLASSES:]))
    return html.block("Attributes of the prompts", text)


def _words(summary: Mapping[str, Any]) -> str:
    if "words" not in summary:
        return ""
    headers, cells = words.cells(summary["words"])
    table = html.table(headers, [([escape(cell) for cell in row], "") for row in cells], text_columns=2)
    return html.block("Words", html.note(words.NOTE) + table)


def what_it_cost(summary: Mapping[str, Any], data: RunData, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Seconds by stage, operations, and the course of the trainings."""
    seconds = summary["seconds"]
    total = sum(seconds.values())
    rows: list[html.Row] = [
        ([escape(name), format_duration(value), html.bar(value / total if total else 0)], "")
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    everything: html.Row = (["<b>all</b>", f"<b>{format_duration(total)}</b>", ""], "")
    headers = ["Stage", "Time", "Share"]
    shown, others = rows[:_MOST_STAGES], rows[_MOST_STAGES:]
    stages = html.table(headers, [*shown, everything], caption="Seconds by stage, compilation included")
    if others:
        stages += html.details(f"The other {html.count(len(others), 'stage')}", html.table(headers, others))
    flops: list[html.Row] = [([escape(name), f"{value / 1e12:,.3g}"], "") for name, value in data.flops.items()]
    counted = ""
    if flops:
        counted = html.table(["Spent on", "TFLOP"], flops) + html.note(
            "Matrix products and convolutions, two operations for a multiplication and an addition. The trainings of "
            "generator and weights are not counted."
        )
    curves = ""
    if any(name.endswith(("loss", "accuracy")) for row in metrics for name in row):
        curves = html.figure(partial(plots.plot_curves, metrics), "Loss and accuracy by step of each training")
    return html.blocks(html.block("Time", stages), html.block("Operations", counted), html.block("Trainings", curves))


def how_to_repeat(summary: Mapping[str, Any], config: Mapping[str, Any], data: RunData) -> str:
    """Command, config, versions, and fingerprints of all that was read."""

    def code(text: str) -> str:
        return f"<code>{escape(text)}</code>"

    command = f"<pre>{escape(data.command)}</pre>" if data.command else ""
    changed: list[html.Row] = [
        ([code(field), code(value), code(default)], "") for field, default, value in data.changed
    ]
    fields = _flatten(config)
    whole = html.table(["Field", "Value"], [([code(name), code(value)], "") for name, value in fields], text_columns=2)
    versions = html.table(
        ["Package", "Version"], [([escape(a), escape(b)], "") for a, b in summary["versions"].items()]
    )
    inputs = html.table(["Read", "Fingerprint"], [([escape(a), code(b)], "") for a, b in data.inputs.items()])
    differing = html.note("All fields have their defaults.")
    if changed:
        differing = html.table(
            ["Field", "Here", "Default"], changed, caption="Fields that differ from the defaults", text_columns=3
        )
    return (
        command
        + differing
        + html.details(f"The whole config, {html.count(len(fields), 'field')}", whole)
        + html.details("Versions of the packages", versions)
        + (html.details("Fingerprints of data and checkpoint", inputs) if data.inputs else "")
    )


def image_map(data: RunData) -> str:
    """Real and synthetic images in the plane of their features' two principal components."""
    if data.map_real is None or data.map_explained is None:
        return ""
    groups: dict[str, Any] = {"real": (data.map_real, data.map_real_labels)}
    if data.map_synthetic is not None:
        groups = {"synthetic": (data.map_synthetic, data.map_synthetic_labels), **groups}
    about = (
        "Each image by the two principal components of its features, as the classifier of the real images has them. "
        "Synthetic images far from all real ones show it something else."
    )
    explained = float(data.map_explained[0]), float(data.map_explained[1])
    colours = [()] + ([tuple(data.class_names)] if len(data.class_names) <= plots.MOST_COLOURS else [])
    drawn = [html.figure(partial(plots.plot_image_map, groups, names, explained), about) for names in colours]
    return html.block("Map of the images", html.note(about) + html.blocks(*(html.block("", each) for each in drawn)))


def _column(pool: Pool, name: str) -> np.ndarray | None:
    """A field of all records; None where one of them lacks it."""
    values = [getattr(record, name) for record in pool.records]
    return None if any(value is None for value in values) else np.asarray(values, np.float64)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", repr(value)))
    return rows
