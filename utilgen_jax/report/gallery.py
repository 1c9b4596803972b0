"""Gallery of a run: an index and sheets of thumbnails, which the page's script shows by class, sorted, as asked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.streamed_images import in_memory
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report import html
from utilgen_jax.report.data import MAX_SIDE, RunData, shrink
from utilgen_jax.report.duplicates import near_duplicates

COLUMNS = 10  # and rows of a sheet
SMALL_SIDE, MANY = 64, 2000  # pixels of thumbnails where there are more than so many images
MOST_SHOWN = 20_000
_MOST_SHOWN_LABELS = 2
# Column of the index -> what it is called in the gallery's choice of an order.
_SORTS = {"weight": "utility (weight)", "difficulty": "difficulty", "disagreement": "disagreement of the soft label"}


def gallery(data: RunData, pool: Pool | None) -> tuple[str, str]:
    """Makes the gallery of the few-shot images and a pool.

    Thumbnails are inlined, 100 on a sheet, the images of a class together and the useful ones first: few sheets are
    decoded for the first view. Pixels of small images are kept as they are.

    Args:
        data: has the real images.
        pool: the synthetic images; None for none.

    Returns:
        HTML of the place where the script puts it; and the blocks of data.
    """
    index: dict[str, Any] = {
        "columns": COLUMNS,
        "classes": list(data.class_names),
        "stats": _stats(data, pool),
        "pool": data.pool,
        "prompts": [],
        "real": {"label": data.real_labels.tolist(), "id": list(data.real_ids), "count": data.num_real.tolist()},
        "synthetic": None,
    }
    small = max(data.real_images.shape[1:3]) <= SMALL_SIDE
    blocks = _sheets("real", data.real_images, small, index["real"])
    marks = ""
    if pool is not None:
        small = max(pool.images.shape[1:3]) <= SMALL_SIDE
        pool, numbers, note = _shown(pool)
        columns, order = _columns(data, pool, numbers, index["prompts"])
        columns = {
            name: [values[place] for place in order]
            for name, values in columns.items()
            if any(value is not None for value in values)
        }
        varied = [name for name in _SORTS if len(set(columns.get(name, ()))) > 1]
        index["sorts"] = [[name, _SORTS[name]] for name in varied] + [["number", "order of generation"]]
        index["synthetic"] = columns
        blocks += _sheets("synthetic", pool.images[order], small, columns)
        marks = _marks(columns, len(pool.labels)) + note
    place = (
        f'{marks}<div class="controls" id="gallery-controls"></div>'
        '<div id="gallery"><noscript>The images are shown by a script of this page.</noscript></div>'
    )
    return place, html.json_block("gallery-index", index) + "".join(blocks)


def _shown(pool: Pool) -> tuple[Pool, np.ndarray, str]:
    """The part of a pool that the page holds, shrunk; which images it is; a note where it is not all."""
    number = len(pool.labels)
    rows = np.arange(number) if number <= MOST_SHOWN else np.linspace(0, number - 1, MOST_SHOWN).astype(int)
    side = SMALL_SIDE if number > MANY else MAX_SIDE
    # A part at a time: memory need not hold them as they were generated.
    parts = [shrink(in_memory(pool.images[rows[start : start + 256]]), side) for start in range(0, len(rows), 256)]
    note = html.note(f"{MOST_SHOWN:,} of {number:,} images are shown.") if len(rows) < number else ""
    shown = Pool(np.concatenate(parts), pool.labels[rows], tuple(pool.records[row] for row in rows))
    return shown, rows, note


def _columns(
    data: RunData, pool: Pool, numbers: np.ndarray, prompts: list[str]
) -> tuple[dict[str, list[Any]], np.ndarray]:
    """What the index tells of each image, and the order in which the images are stored; fills in the prompts."""
    records = pool.records
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(record.prompt or "" for record in records))}
    prompts += places
    rows = {id_: row for row, id_ in enumerate(data.real_ids)}
    images = in_memory(pool.images)
    same = near_duplicates(images, pool.labels, images, pool.labels, is_same=True)
    copies = near_duplicates(images, pool.labels, data.real_images, data.real_labels, is_same=False)
    columns: dict[str, list[Any]] = {
        "number": numbers.tolist(),
        "label": pool.labels.tolist(),
        "file": [record.file_name for record in records],
        "prompt": [places[record.prompt or ""] for record in records],
        "seed": [record.seed for record in records],
        "weight": [_rounded(record.weight) for record in records],
        "difficulty": [_rounded(record.difficulty) for record in records],
        "requested": [_rounded(record.requested_difficulty) for record in records],
        "disagreement": [_disagreement(record) for record in records],
        "top": [_top(record.soft_label) for record in records],
        "same": [None if other < 0 else int(numbers[other]) for other in same],
        "copy": [None if other < 0 else int(other) for other in copies],
        "sources": [_known(record.conditioned_on, rows) for record in records],
    }
    weights = np.array([-1.0 if weight is None else weight for weight in columns["weight"]])
    return columns, np.lexsort((-weights, pool.labels))


def _known(ids: Sequence[str] | None, rows: dict[str, int]) -> list[int] | None:
    """Rows of the real images with these ids, as far as they are shown."""
    return [rows[each] for each in dict.fromkeys(ids or ()) if each in rows] or None


def _marks(columns: dict[str, list[Any]], number: int) -> str:
    """A sentence on near-duplicates."""
    same, copies = (sum(value is not None for value in columns.get(name, ())) for name in ("same", "copy"))
    text = f"{same:,} of an earlier image of the class, {copies:,} of a real image, among {number:,}"
    return html.note(f"Near-duplicates, which are marked: {text}.")


def _stats(data: RunData, pool: Pool | None) -> list[str]:
    """A line about each class."""
    if pool is None:
        return [""] * len(data.class_names)
    lines = []
    for label in range(len(data.class_names)):
        own = [pool.records[row] for row in np.flatnonzero(pool.labels == label)]
        parts = [f"{len(own):,} synthetic"]
        for name in ("weight", "difficulty"):
            values = [getattr(record, name) for record in own if getattr(record, name) is not None]
            if values:
                parts.append(f"mean {name} {np.mean(values):.2f}")
        lines.append(", ".join(parts))
    return lines


def _sheets(kind: str, images: np.ndarray, small: bool, about: dict[str, Any]) -> list[str]:
    """Blocks with the sheets of images uint8 [N, h, w, C]; notes in `about` what the script has to know of them."""
    side = max(images.shape[1:3]) if small else -(-max(images.shape[1:3]) // 16) * 16  # whole blocks of a JPEG file
    about |= {"type": "image/png" if small else "image/jpeg", "pixelated": small}
    blocks = []
    for number, start in enumerate(range(0, len(images), COLUMNS**2)):
        sheet = Image.new("L" if images.shape[-1] == 1 else "RGB", (COLUMNS * side, COLUMNS * side))
        for cell, each in enumerate(images[start : start + COLUMNS**2]):
            tile = Image.fromarray(each[..., 0] if images.shape[-1] == 1 else each)
            left, top = (side - tile.width) // 2, (side - tile.height) // 2
            sheet.paste(tile, (cell % COLUMNS * side + left, cell // COLUMNS * side + top))
        stream = io.BytesIO()
        sheet.save(stream, "PNG") if small else sheet.save(stream, "JPEG", quality=82)
        content = base64.b64encode(stream.getvalue()).decode()
        blocks.append(f'<script type="text/plain" id="{kind}-{number}">{content}</script>')
    return blocks


def _disagreement(record: PoolRecord) -> float | None:
    """The probability that the soft label leaves to other classes."""
    return None if record.soft_label is None else _rounded(1 - record.soft_label[record.label])


def _top(soft_label: Sequence[float] | None) -> list[list[float]] | None:
    """The likeliest classes of a soft label, with their probabilities."""
    if soft_label is None:
        return None
    largest = np.argsort(-np.asarray(soft_label), kind="stable")[:_MOST_SHOWN_LABELS]
    return [[int(label), round(float(soft_label[label]), 3)] for label in largest]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
