"""Tables for the terminal and for markdown, and their statistics."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

_NUMERIC = re.compile(r"([+\-−]?\.?\d.*|[-–—]?|nan)", re.DOTALL)


def format_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Formats rows as aligned text: numeric columns to the right, others to the left.

    Args:
        rows: cells by row, each row as long as `headers`; cells are converted by `str`.
        headers: names of the columns.

    Returns:
        Headers, a rule and the rows, without a final newline.

    Raises:
        ValueError: the number of cells of a row differs from that of the headers.
    """
    cells, right = _cells(rows, headers)
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_markdown_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Formats rows as a markdown table, without a final newline; see `format_table`."""
    cells, right = _cells(rows, headers)
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
    rule = ["---:" if is_right else "---" for is_right in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [escaped[0], rule, *escaped[1:]])


def mean_std(values: ArrayLike) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation (n - 1 in the denominator).

    Args:
        values: numbers [n], one per run.

    Returns:
        (mean, standard deviation); the deviation of a single run is NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else float("nan")


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns the mean of a - b over paired runs (same seed, same split) with its Student-t interval.

        d = a - b,    mean(d) ± t_{n-1}((1 + confidence) / 2) · std(d) / √n

    Args:
        a: results of one method by run, [n].
        b: results of the other method, in the same order of runs, [n].
        confidence: coverage of the interval, in (0, 1).

    Returns:
        (mean, low, high) in the unit of the results; low and high are -inf and inf for a single pair.

    Raises:
        ValueError: the arrays are empty, not one-dimensional or of different lengths.
    """
    from scipy.stats import t as student_t  # slow to import

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"paired results must be two lists of the same length, got {first.shape} and {second.shape}")
    mean, std = mean_std(first - second)
    if first.size == 1:
        return mean, float("-inf"), float("inf")
    margin = float(student_t.ppf((1 + confidence) / 2, first.size - 1)) * std / first.size**0.5
    return mean, mean - margin, mean + margin


def _cells(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> tuple[list[list[str]], list[bool]]:
    """Returns all cells as text, headers first, and whether each column is numeric."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row}")
    body = [[str(cell) for cell in row] for row in rows]
    right = [bool(body) and all(_NUMERIC.fullmatch(row[column]) for row in body) for column in range(len(headers))]
    return [list(headers), *body], right
