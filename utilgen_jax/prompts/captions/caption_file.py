"""Captions as JSON lines: `{"id": "train/daisy/0200.jpg", "caption": "a white flower in the grass"}`."""

import json
from collections.abc import Sequence
from pathlib import Path

from utilgen_jax.errors import InputError

_NAMES = ("id", "file_name")  # `file_name` as in the metadata.jsonl of Hugging Face's image folders
_SHOWN = 10


def read_captions(file: str | Path, ids: Sequence[str]) -> list[str]:
    """Reads captions from a file.

    Args:
        file: JSON lines with `caption` and the image's `id` or `file_name`; other fields and images are ignored.
        ids: N image ids, see `LabelledImages.ids`.

    Returns:
        N captions.

    Raises:
        InputError: the file is missing, lines are invalid, or images have no caption or several; lists all
            problems.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file of captions")
    captions, problems = parse_captions(file)
    missing = [name for name in ids if name not in captions]
    problems += [f"{file}: no caption of the image {name!r}" for name in missing]
    if problems:
        more = [f"{file}: and {len(problems) - _SHOWN} more problems"] if len(problems) > _SHOWN else []
        raise InputError("\n".join([*problems[:_SHOWN], *more]))
    return [captions[name] for name in ids]


def parse_captions(file: Path) -> tuple[dict[str, str], list[str]]:
    """Reads a file of captions as {id: caption}, and returns a message for each invalid line."""
    captions: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            problems.append(f"{where}: is not JSON ({error})")
            continue
        entry = fields if isinstance(fields, dict) else {}
        names = [entry[key] for key in _NAMES if isinstance(entry.get(key), str)]
        caption = entry.get("caption")
        if not names or not isinstance(caption, str):
            problems.append(f'{where}: should be like {{"id": "train/daisy/0200.jpg", "caption": "a white flower"}}')
        elif captions.setdefault(names[0], one_line(caption)) != one_line(caption):
            problems.append(f"{where}: {names[0]!r} has another caption in an earlier line")
    return captions, problems


def one_line(caption: str) -> str:
    """Collapses white space and removes the final full stop, so that a caption fits into a prompt."""
    return " ".join(caption.split()).rstrip(" .")
