"""Parts of a report page: tables, bars, sections; all text that comes from data is escaped where it is put in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

_ASSETS = Path(__file__).parents[1] / "assets" / "report"
# Colours of `plots` -> the page's, which dark mode changes.
_COLOURS = {
    "#333840": "var(--ink)",
    "#5a6069": "var(--soft)",
    "#9aa0a8": "var(--soft)",
    "#e6e8eb": "var(--line)",
    "fill: #ffffff": "fill: none",
}

Row = tuple[Sequence[str], str]  # HTML cells, CSS class


def page(title: str, head: str, sections: Sequence[tuple[str, str]], data: str = "", script: str = "") -> str:
    """Builds a page that loads nothing.

    Args:
        title: text.
        head: HTML below the title.
        sections: (heading, HTML), in the order of the page; those without content are left out.
        data: HTML of blocks of data for the script.
        script: name of an asset; the page allows this script and no other. "": none.
    """
    shown = [(heading, content) for heading, content in sections if content]
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading, _ in shown)
    body = "".join(
        f'<section id="{_anchor(heading)}" aria-labelledby="{_anchor(heading)}-title">'
        f'<h2 id="{_anchor(heading)}-title">{escape(heading)}</h2>{content}</section>'
        for heading, content in shown
    )
    code = asset(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return Template(asset("page.html")).substitute(
        title=escape(title),
        style=asset("page.css"),
        head=head,
        links=links,
        body=body,
        data=data,
        script=f"<script>{code}</script>" if code else "",
        policy=f"'sha256-{digest}'" if code else "'none'",
    )


def asset(name: str) -> str:
    """The text of a file of the page."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def table(
    headers: Sequence[str], rows: Sequence[Row], caption: str = "", text_columns: int = 1, label: str = ""
) -> str:
    """Builds a table.

    Args:
        headers: texts.
        rows: of HTML cells, the first of which heads its row.
        caption: text, also for screen readers.
        text_columns: the first columns, which are aligned left; the others hold numbers.
        label: text for screen readers in place of the caption.
    """

    def cell(place: int, content: str) -> str:
        kind = "" if place < text_columns else ' class="number"'
        return f'<th scope="row">{content}</th>' if place == 0 else f"<td{kind}>{content}</td>"

    head = "".join(
        f'<th scope="col"{"" if place < text_columns else " class=number"}>{escape(name)}</th>'
        for place, name in enumerate(headers)
    )
    body = "".join(
        f"<tr{f' class={kind}' if kind else ''}>{''.join(cell(*each) for each in enumerate(cells))}</tr>"
        for cells, kind in rows
    )
    about = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label or caption or headers[0])}">'
        f"<table>{about}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def bar(fraction: float) -> str:
    """A bar of a fraction of its width."""
    return f'<span class="bar" aria-hidden="true"><i style="width:{100 * min(max(fraction, 0), 1):.1f}%"></i></span>'


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names and values side by side, as texts."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in pairs)
    return f"<dl>{inner}</dl>"


def note(text: str) -> str:
    """A paragraph of plain text beside figures."""
    return f'<p class="note">{escape(text)}</p>'


def block(title: str, content: str) -> str:
    """A part of a section, under a heading of its own if it has a title; "" where there is nothing in it."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="block">{heading}{content}</div>' if content else ""


def blocks(*parts: str) -> str:
    """Parts side by side where there is room; "" where all are empty."""
    inner = "".join(parts)
    return f'<div class="blocks">{inner}</div>' if inner else ""


def details(summary: str, content: str) -> str:
    """Something that is shown on request."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def figure(draw: Callable[[Path], Any], description: str, is_wide: bool = False) -> str:
    """Draws a figure into the page, in the page's colours.

    Args:
        draw: writes an SVG file, a function of `plots` without its path.
        description: text, for screen readers.
        is_wide: whether it takes all the width there is, and is scrolled where that is little.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        draw(path)
        drawn = path.read_text(encoding="utf-8")
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend)_[0-9]+"', "", drawn)
    for colour, own in _COLOURS.items():
        drawn = re.sub(colour, own, drawn, flags=re.IGNORECASE)
    label = escape(description)
    drawn = drawn.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1)
    return (
        f'<div class="scroll wide" tabindex="0" role="region" aria-label="Figure">{drawn}</div>' if is_wide else drawn
    )


def image(path: Path, description: str) -> str:
    """An image file in the page."""
    with Image.open(path) as opened:
        kind, (width, height) = Image.MIME[opened.format or "PNG"], opened.size
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<img class="sheet" width="{width}" height="{height}" src="{source}" alt="{escape(description)}">'


def json_block(name: str, content: Any) -> str:
    """A block of data that the page's script reads; nothing in it can end the block."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def count(number: int, noun: str) -> str:
    """'1 shot', '1,234 shots'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")
