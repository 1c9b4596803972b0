"""The HTML page of a run: one file with everything in it, to open, keep or mail."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.gallery import data_uri, gallery
from utilgen_jax.report.progress import format_duration

ACCURACY_LABELS = {"real_only": "Real images only", "vanilla": "Real + plain synthetic", "final": "Final"}
FIGURES = {
    "weight_curve": (
        "Weight by loss",
        "The weight that each synthetic image was given, against its loss. A flat curve says that the weight network "
        "found no difference between the samples; the histogram shows where the samples are.",
    ),
    "difficulty": (
        "Difficulty",
        "Difficulty is 1 - p(true class) under the classifier trained on the real images: 0 is easy, 1 is mistaken.",
    ),
    "difficulty_sweep": (
        "Difficulty asked for",
        "What the generator makes for each class (rows) and each difficulty s (columns), from one noise in each row.",
    ),
    "hard_factors": (
        "Hard factors",
        "What the generator makes for the difficulty token of each class alone, without words, where much is asked.",
    ),
    "curves": ("Training", "Loss and accuracy by step, for each stage that trains."),
}
_HALF_WIDTH = ("weight_curve", "difficulty", "difficulty_sweep", "hard_factors")


def write_report(
    workdir: str | os.PathLike[str],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    pool: Pool | None,
    real: LabelledImages,
    class_names: Sequence[str],
    figures: Mapping[str, str | os.PathLike[str]],
    command: str = "",
) -> Path:
    """Writes `<workdir>/report/index.html`: no script, nothing loaded from elsewhere, all text escaped.

    The file is put in place when it is complete; an earlier one stays until then.

    Args:
        workdir: the run's folder.
        summary: the contents of summary.json: `method`, `dataset`, `shots`, `seed`, `accuracy` (fractions by name),
            `num_real`, `num_synthetic`, `seconds` (by stage), `versions`.
        config: the run's config, nested mappings.
        pool: the synthetic images, with weights and difficulties if known; None where the method makes none.
        real: the real images trained on.
        class_names: the name of each label.
        figures: PNG or SVG files by name, a key of `FIGURES`; they are drawn in the order of `FIGURES`.
        command: the command that was run; left out if empty.

    Returns:
        The path of the page.

    Raises:
        ValueError: a figure's name is not in `FIGURES`.
    """
    if unknown := sorted(set(figures) - set(FIGURES)):
        raise ValueError(f"unknown figures {unknown}; known are {sorted(FIGURES)}")
    title = f"{summary['dataset']}, {_count(summary['shots'] or 'all', 'shot')}: {summary['method']}"
    images = "The real shots" if pool is None else "The real shots and the pool"
    sections = [
        _section("Result", _headline(summary)),
        _section("What was run", _what_was_run(summary, config, command)),
        _section(images, gallery(pool, real, class_names)),
        *(_figure(name, Path(figures[name])) for name in FIGURES if name in figures),
        _section("Time by stage", _stage_times(summary["seconds"])),
    ]
    page = _PAGE.format(title=escape(title), style=_STYLE, facts=_facts(summary), body="".join(sections))
    path = Path(workdir) / "report" / "index.html"
    _write_atomically(path, page)
    return path


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{content}</section>'


def _facts(summary: Mapping[str, Any]) -> str:
    facts = [
        ("method", summary["method"]),
        ("data", summary["dataset"]),
        ("shots a class", summary["shots"] or "all"),
        ("seed", summary["seed"]),
        ("real images", f"{summary['num_real']:,}"),
        ("synthetic images", f"{summary['num_synthetic']:,}"),
        ("time", format_duration(sum(summary["seconds"].values()))),
    ]
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)


def _headline(summary: Mapping[str, Any]) -> str:
    accuracy, baseline = summary["accuracy"], summary["accuracy"].get("real_only")
    order = [name for name in ACCURACY_LABELS if name in accuracy]
    order += sorted(set(accuracy) - set(order))
    rows = []
    for name in order:
        label = ACCURACY_LABELS.get(name, name) + (f" ({summary['method']})" if name == "final" else "")
        plain = name == "real_only" or summary["method"] == "real"
        gain = "–" if baseline is None or name == "real_only" else f"{100 * (accuracy[name] - baseline):+.1f}"
        cells = [
            escape(label),
            f"<b>{100 * accuracy[name]:.1f} %</b>{_bar(accuracy[name])}",
            gain,
            f"{summary['num_real']:,}",
            "0" if plain else f"{summary['num_synthetic']:,}",
        ]
        rows.append((cells, "accent" if name == "final" else ""))
    headers = ["Trained on", "Test accuracy", "Points over real only", "Real", "Synthetic"]
    return _table(headers, rows)


def _what_was_run(summary: Mapping[str, Any], config: Mapping[str, Any], command: str) -> str:
    shown = f"<pre>{escape(command)}</pre>" if command else ""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    rows = [([f"<code>{escape(name)}</code>", f"<code>{escape(value)}</code>"], "") for name, value in _flatten(config)]
    table = _table(["Field", "Value"], rows, numeric=False)
    return (
        f'{shown}<p class="note">{escape(versions)}</p>'
        f"<details><summary>Configuration, {_count(len(rows), 'field')}</summary>{table}</details>"
    )


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
    """A table of cells that are HTML already; each row comes with its class. Columns after the first hold numbers."""
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


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Adapter" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><p class="brand">utilgen_jax</p><h1>{title}</h1><dl>{facts}</dl></header>
<main>{body}</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --back: #f5f6f8; --card: #ffffff; --ink: #1f2328; --soft: #626973; --line: #e3e6ea;
  --accent: #0072b2; --track: #e9ecf0; --tint: #eef6fb; }
@media (prefers-color-scheme: dark) { :root { --back: #111418; --card: #1a1e24; --ink: #e6e9ee; --soft: #9aa3af;
  --line: #2c323b; --accent: #56b4e9; --track: #2a3039; --tint: #16283a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.brand { margin: 0; color: var(--accent); font-weight: 600; letter-spacing: .02em; }
h1 { margin: .1rem 0 1rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .7rem; font-size: 1.15rem; }
h3 { margin: 1.1rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: 1rem; }
h3 small { margin-left: .5rem; }
h3 small, h4 { color: var(--soft); font-weight: 400; font-size: .8rem; }
h4 { margin: 0 0 .25rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1.5rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; }
main { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; }
section { grid-column: 1 / -1; padding: 1.2rem 1.4rem 1.3rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.half { grid-column: auto; }
.note { margin: 0 0 .8rem; max-width: 46rem; color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: .8rem; text-align: left; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
.numbers th:nth-child(n+3), .numbers td:nth-child(n+3) { text-align: right; }
.accent td { background: var(--tint); }
.bar { display: block; min-width: 7rem; height: 6px; margin-top: .35rem; border-radius: 3px; background: var(--track); }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--soft); }
.accent .bar i { background: var(--accent); }
pre, code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { margin: 0 0 .8rem; padding: .7rem .9rem; background: var(--back); border-radius: 6px; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--accent); }
.groups { display: flex; flex-wrap: wrap; gap: .6rem 1.6rem; }
.strip { display: flex; flex-wrap: wrap; gap: 5px; }
figure { margin: 0; width: 56px; }
figure img { display: block; width: 56px; height: 56px; object-fit: contain; border-radius: 4px;
  background: var(--track); }
figure img.pixels { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: 10px; line-height: 1.5; text-align: center; white-space: nowrap; }
.plot { display: block; margin: 0 auto; max-width: 100%; height: auto; padding: .4rem; background: #fff;
  border-radius: 8px; }
@media (max-width: 48rem) {
  body { padding: 1.2rem .6rem 3rem; }
  h1 { font-size: 1.5rem; }
  section { padding: 1rem; }
  .half { grid-column: 1 / -1; }
  .group { width: 100%; }
  .strip { display: grid; grid-template-columns: repeat(4, minmax(0, 5rem)); }
  figure, figure img { width: 100%; }
  figure img { height: auto; aspect-ratio: 1; }
}
"""
