"""Declares the fields of config sections: frozen dataclasses that hold default, help text, bounds and choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the configuration.

    Attributes:
        path: dotted name, at most one dot.
        default: value in `default_config()`; its type is the field's type (bool, int, float, str, or a tuple of str).
        help: one line for `--helpfull`.
        minimum: smallest value allowed (numbers) or None.
        maximum: largest value allowed (numbers) or None.
        choices: all values allowed (of a tuple: of each entry); empty means any.
        may_change: a run may be continued with another value, because it does not alter what is computed.
        is_path: it is, or may be, a path: `~` stands for the home folder.
    """

    path: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    may_change: bool = False
    is_path: bool = False


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] = (),
    may_change: bool = False,
    is_path: bool = False,
) -> Any:
    """Declares a field of a config section; see `Field` for the arguments."""
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "may_change": may_change,
        "is_path": is_path,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section_fields(section: type, prefix: str = "") -> Iterator[Field]:
    """Yields the `Field` of each `setting` of a section, in the order of declaration.

    Args:
        section: a dataclass.
        prefix: put before the names, such as "data.".
    """
    for field in dataclasses.fields(section):
        if field.metadata:
            yield Field(f"{prefix}{field.name}", field.default, **field.metadata)
