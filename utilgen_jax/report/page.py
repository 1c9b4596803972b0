"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utilgen_jax.errors import InputError
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report import html, sections
from utilgen_jax.report.data import RunData
from utilgen_jax.report.gallery import gallery
from utilgen_jax.report.metrics import read_metrics
from utilgen_jax.report.progress import format_duration
from utilgen_jax.runtime.atomic_write import write_text


def write_report(workdir: str | os.PathLike[str], summary: Mapping[str, Any], data: RunData, pool: Pool | None) -> Path:
    """Writes `<workdir>/report/index.html`, in the order in which a person asks.

    The page loads nothing and allows no script but its own; all text is escaped. The file is replaced atomically. What
    a run does not have is left out.

    Args:
        workdir: the run's folder, with its `config.json` and metrics.
        summary: the contents of summary.json: `method`, `dataset`, `shots`, `seed`, `accuracy` (fractions by name),
            `num_real`, `num_synthetic`, `seconds` (by stage), `versions`; where known, `accuracy_synthetic_only`,
            `trained_on`, and `words`, see `words.word_table`.
        data: what else is shown.
        pool: the synthetic images, with weights and difficulties if known; None for a method without any.

    Returns:
        The path of the page.
    """
    folder = Path(workdir)
    place, blocks = gallery(data, pool)
    shown = [
        ("Did it help?", sections.did_it_help(summary, data)),
        ("What was generated?" if pool is not None else "Which images?", sections.image_map(data) + place),
        ("What did the generator learn?", sections.what_it_learnt(folder, summary, data, pool)),
        ("What did it cost?", sections.what_it_cost(summary, data, read_metrics(folder))),
        ("How do I repeat it?", sections.how_to_repeat(summary, _config(folder), data)),
    ]
    shots = html.count(summary["shots"], "shot") if summary["shots"] else "all shots"
    title = f"{summary['dataset']}, {shots}: {summary['method']}"
    path = folder / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html.page(title, _facts(summary), shown, blocks, "gallery.js"))
    return path


def _config(workdir: Path) -> dict[str, Any]:
    """The whole config, from the run's folder."""
    file = workdir / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _facts(summary: Mapping[str, Any]) -> str:
    facts = [
        ("method", summary["method"]),
        ("data", summary["dataset"]),
        ("shots per class", summary["shots"] or "all"),
        ("seed", summary["seed"]),
        ("real images", f"{summary['num_real']:,}"),
        ("synthetic images", f"{summary['num_synthetic']:,}"),
        *([("test images", f"{summary['num_test']:,}")] if "num_test" in summary else []),
        ("time", format_duration(sum(summary["seconds"].values()))),
    ]
    return html.facts(facts)
