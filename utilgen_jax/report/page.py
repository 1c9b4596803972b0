"""The HTML report of a run: one self-contained file."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report import words
from utilgen_jax.report.gallery import data_uri, gallery
from utilgen_jax.report.progress import format_duration
from utilgen_jax.runtime import atomic_write

_ASSETS = Path(__file__).parents[1] / "assets"

ACCURACY_LABELS = {"real_only": "Real images only", "vanilla": "Real + plain synthetic", "final": "Final"}
FIGURES = {
    "weight_curve": (
        "Weight by loss",
        "Weight of each synthetic image against its loss. A flat curve means that the weight network found no "
        "difference between the samples. The histogram shows the distribution of the losses.",
    ),
    "difficulty": (
        "Difficulty",
        "1 - p(true class) under the classifier trained on the real images: 0 is easy, 1 is misclassified.",
    ),
    "difficulty_sweep": (
        "Requested difficulty",
        "Images generated for each class (rows) and difficulty s (columns). A row shares its initial noise.",
    ),
    "hard_factors": (
        "Hard factors",
        "Images generated from the difficulty token of each class alone, without a prompt, at high difficulty.",
    ),
    "curves": ("Training", "Loss and accuracy by step, for each training stage."),
}
_HALF_WIDTH = ("weight_curve", "difficulty", "difficulty_sweep", "hard_factors")


def write_report(
    workdir: str | os.PathLike[str],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    real: LabelledImages,
    pool: Pool | None,
    figures: Mapping[str, str | os.PathLike[str]],
    command: str = "",
) -> Path:
    """Writes `<workdir>/report/index.html`.

    The page has no scripts and loads nothing; all text is escaped. The file is replaced atomically.

    Args:
        workdir: the run's folder.
        summary: the contents of summary.json: `method`, `dataset`, `shots`, `seed`, `accuracy` (fractions by name),
            `num_real`, `num_synthetic`, `seconds` (by stage), `versions`; where known, `accuracy_synthetic_only`,
            `trained_on`, and `words`, see `words.word_table`.
        config: the run's config, nested mappings.
        real: the real training images.
        pool: the synthetic images, with weights and difficulties if known; None for a method without any.
        figures: PNG or SVG files by name, a key of `FIGURES`; shown in the order of `FIGURES`.
        command: the command line of the run; omitted if empty.

    Returns:
        The path of the page.

    Raises:
        ValueError: a figure's name is not in `FIGURES`.
    """
    if unknown := sorted(set(figures) - set(FIGURES)):
        raise ValueError(f"unknown figures {unknown}; known are {sorted(FIGURES)}")
    title = f"{summary['dataset']}, {_count(summary['shots'] or 'all', 'shot')}: {summary['method']}"
    images = "Real images" if pool is None else "Real and synthetic images"
    sections = [
        _section("Result", _headline(summary)),
        _section("What was run", _what_was_run(summary, config, command)),
        *([_section("Words", _words(summary["words"]))] if "words" in summary else []),
        _section(images, gallery(real, pool)),
        *(_figure(name, Path(figures[name])) for name in FIGURES if name in figures),
        _section("Time by stage", _stage_times(summary["seconds"])),
    ]
    page = Template(_read_asset("report.html")).substitute(
        title=escape(title), style=_read_asset("report.css"), facts=_facts(summary), body="".join(sections)
    )
    path = Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write.write_text(path, page)
    return path


UPDATE_NOTE = "The update's own classifiers, the folds' together, each of its averaged parameters"


def accuracy_columns(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the columns of a run's table, {title: {row: accuracy}}.

    Args:
        summary: the contents of summary.json. Where classifiers of synthetic images alone were tested, they have a
            column of their own; older summaries know none.
    """
    accuracy, synthetic_only = summary["accuracy"], summary.get("accuracy_synthetic_only")
    if not synthetic_only:
        return {"test accuracy": accuracy}
    if summary.get("trained_on") == "synthetic_only":
        accuracy = {row: value for row, value in accuracy.items() if row not in synthetic_only}
    return {"with real images": accuracy, "synthetic images only": synthetic_only}


def _read_asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{content}</section>'


def _facts(summary: Mapping[str, Any]) -> str:
    facts = [
        ("method", summary["method"]),
        ("data", summary["dataset"]),
        ("shots per class", summary["shots"] or "all"),
        ("seed", summary["seed"]),
        ("real images", f"{summary['num_real']:,}"),
        ("synthetic images", f"{summary['num_synthetic']:,}"),
        ("time", format_duration(sum(summary["seconds"].values()))),
    ]
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)


def _headline(summary: Mapping[str, Any]) -> str:
    accuracy, baseline = summary["accuracy"], summary["accuracy"].get("real_only")
    columns = accuracy_columns(summary)
    order = [name for name in ACCURACY_LABELS if name in accuracy]
    order += sorted(set(accuracy) - set(order))
    rows = []
    for name in order:
        label = ACCURACY_LABELS.get(name, name) + (f" ({summary['method']})" if name == "final" else "")
        plain = name == "real_only" or summary["method"] == "real"
        gain = "–" if baseline is None or name == "real_only" else f"{100 * (accuracy[name] - baseline):+.1f}"
        cells = [
            escape(label),
            *(
                f"<b>{100 * column[name]:.1f} %</b>{_bar(column[name])}" if name in column else "–"
                for column in columns.values()
            ),
            gain,
            f"{summary['num_real']:,}",
            "0" if plain else f"{summary['num_synthetic']:,}",
        ]
        rows.append((cells, "accent" if name == "final" else ""))
    titles = [f"{title[0].upper()}{title[1:]}" for title in columns]
    headers = ["Trained on", *titles, "Points over real only", "Real", "Synthetic"]
    note = ""
    if "accuracy_of_update" in summary:
        note = f'<p class="note">{escape(UPDATE_NOTE)}: {100 * summary["accuracy_of_update"]:.1f} %</p>'
    return _table(headers, rows) + note


def _what_was_run(summary: Mapping[str, Any], config: Mapping[str, Any], command: str) -> str:
    shown_command = f"<pre>{escape(command)}</pre>" if command else ""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    rows = [([f"<code>{escape(name)}</code>", f"<code>{escape(value)}</code>"], "") for name, value in _flatten(config)]
    table = _table(["Field", "Value"], rows, numeric=False)
    return (
        f'{shown_command}<p class="note">{escape(versions)}</p>'
        f"<details><summary>Configuration, {_count(len(rows), 'field')}</summary>{table}</details>"
    )


def _words(rows: Sequence[words.Row]) -> str:
    headers, cells = words.cells(rows)
    table = _table(headers, [([escape(cell) for cell in row], "") for row in cells])
    return f'<p class="note">{escape(words.NOTE)}</p>{table}'


def _figure(name: str, path: Path) -> str:
    title, caption = FIGURES[name]
    source = data_uri(path.read_bytes(), {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix])
    content = f'<p class="note">{escape(caption)}</p><img class="plot" src="{source}" alt="{escape(title)}">'
    return _section(title, content, "half" if name in _HALF_WIDTH else "")


def _stage_times(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    rows = [([escape(name), format_duration(value), _bar(value / total if total else 0)], "")
            for name, value in seconds.items()]  # fmt: skip
    rows.append((["<b>all</b>", f"<b>{format_duration(total)}</b>", ""], ""))
    return _table(["Stage", "Time", "Share"], rows)


def _table(headers: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], numeric: bool = True) -> str:
    """Builds a table from rows of (HTML cells, CSS class). `numeric` right-aligns the columns after the second."""
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    body = "".join(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for cells, kind in rows)
    table = f'<table class="{"numbers" if numeric else ""}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _bar(fraction: float) -> str:
    return f'<span class="bar"><i style="width:{100 * min(max(fraction, 0), 1):.1f}%"></i></span>'


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", repr(value)))
    return rows


def _count(number: int | str, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
