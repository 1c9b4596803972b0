"""What a run found of each word of the classes that have several: a table for summary, report and terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utilgen_jax.pool.records import PoolRecord

Row = Mapping[str, Any]
# Key of a row -> title of the column; what a row's number is a mean of is said in `NOTE`.
COLUMNS = {
    "class": "Class",
    "word": "Word",
    "images": "Images",
    "weight": "Mean weight",
    "label_probability": "Soft label",
    "difficulty": "Difficulty",
    "value": "Value",
    "share": "Chosen",
}
NOTE = (
    "Means over the images of a word: their weight, the probability that their soft label leaves on the class, and "
    "their difficulty, 1 - p(class) under the classifier of the real images. Where words were chosen: the value that "
    "classifiers of the few-shot images gave each word before the pool was made, and the share of the prompts that it "
    "got."
)
_SHOWN = 3


def word_table(
    words: Sequence[tuple[str, str]], records: Sequence[PoolRecord], columns: Mapping[str, np.ndarray | None]
) -> list[dict[str, Any]]:
    """Makes a row for each word of each class that has several.

    Args:
        words: (class name, word) of each row.
        records: of N images.
        columns: name -> float [N], of which a row has the mean; None: not known, and not in the row.

    Returns:
        Rows with "class", "word", "images" (number) and the means, None for a word without images.
    """
    members = defaultdict(list)
    for place, record in enumerate(records):
        members[record.class_name, record.word].append(place)
    known = {name: column for name, column in columns.items() if column is not None}
    return [
        {"class": name, "word": word, "images": len(members[name, word])}
        | {
            key: round(float(np.mean(column[members[name, word]])), 4) if members[name, word] else None
            for key, column in known.items()
        }
        for name, word in words
    ]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The table as text: titles, and a row of cells for each row; a number that is not known is –."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    return [COLUMNS[key] for key in keys], [[_text(row.get(key)) for key in keys] for row in rows]


def word_lines(rows: Sequence[Row]) -> list[str]:
    """Two or three lines for the terminal: the most and the least useful words, and those that were chosen."""
    score, title = _score(rows)
    made = sorted((row for row in rows if row["images"]), key=score, reverse=True)

    def listed(some: Sequence[Row]) -> str:
        return ", ".join(f"{row['class']} as {row['word']!r} {score(row):.2f}" for row in some)

    lines = [f"words by {title}: highest {listed(made[:_SHOWN])}", f"  lowest {listed(made[::-1][:_SHOWN])}"]
    chosen: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.get("share"):
            chosen[row["class"]].append(row["word"])
    if chosen:
        shown = [f"{name} as {' or '.join(map(repr, words))}" for name, words in chosen.items()]
        more = f" and {len(shown) - 10} more classes" if len(shown) > 10 else ""
        lines.append(f"  chosen: {', '.join(shown[:10])}{more}")
    return lines


def _score(rows: Sequence[Row]) -> tuple[Any, str]:
    """What words are ranked by: weight if it varies, else the soft label, else the classifier of the real images."""
    weights = {row["weight"] for row in rows if row["images"]}
    if len(weights) > 1:
        return lambda row: row["weight"], "mean weight"
    if any("label_probability" in row for row in rows):
        return lambda row: row["label_probability"], "mean probability of the class in the soft label"
    if any("difficulty" in row for row in rows):
        return lambda row: 1 - row["difficulty"], "mean p(class) of the classifier of the real images"
    return lambda row: row["weight"], "mean weight"


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
